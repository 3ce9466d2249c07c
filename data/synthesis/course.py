"""What goes into the self-evolving trio and what comes out of it."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qwenlong_jax.data.documents import Document
from qwenlong_jax.data.synthesis.proposals import Rules
from qwenlong_jax.data.verification_by_model import GREEDY, Rejection
from qwenlong_jax.llm import Completion, Sampling
from qwenlong_jax.types import Example

KINDS = ("viewpoint", "in_context", "reading")

_RULES = Rules()
_VARIED = Sampling(temperature=1.0)
_USUAL = Sampling()


@dataclass(frozen=True)
class Trio:
  """Each role its own model; they may be one and the same."""

  proposer: Completion
  solver: Completion
  verifier: Completion


@dataclass(frozen=True)
class Course:
  """How long and how: `proposals` for each cluster and round, `samples` answers to each, `remembered` in a prompt."""

  rounds: int = 3
  proposals: int = 1
  samples: int = 4
  remembered: int = 8
  kinds: tuple[str, ...] = KINDS
  seed: int = 0
  keep_always_solved: bool = False
  rules: Rules = _RULES
  proposing: Sampling = _VARIED
  solving: Sampling = _USUAL
  judging: Sampling = GREEDY


@dataclass(frozen=True)
class Past:
  """A question in the history: how many of the solver's answers to it were right."""

  question: str
  answer: str
  right: int
  samples: int


@dataclass(frozen=True)
class Round:
  """How one round went; `solve_rate` is the mean over what passed the rules, None if nothing did."""

  number: int
  proposed: int
  passed_rules: int
  kept: int
  solve_rate: float | None
  rejected: dict[str, int]


@dataclass(frozen=True)
class Evolved:
  examples: tuple[Example, ...]
  rejected: tuple[Rejection, ...]
  rounds: tuple[Round, ...]


def key_of(documents: Sequence[Document]) -> str:
  """Names a cluster by what it says, wherever it stands in the list."""
  words = "\0".join(f"{document.id}\0{document.text}" for document in documents)
  return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def check(clusters: Sequence[Sequence[Document]], course: Course) -> None:
  """Raises ValueError for a course that can keep nothing, and for clusters that are empty or the same."""
  if course.samples < 2 and not course.keep_always_solved:
    raise ValueError(
      f"of {course.samples=} answers either none or all are right, and nothing is kept; "
      "draw at least 2, or set keep_always_solved"
    )
  if not course.kinds or set(course.kinds) - set(KINDS):
    raise ValueError(f"{course.kinds=} must be some of {KINDS}; add a kind of your own as another text of one of these")
  if empty := [place for place, documents in enumerate(clusters) if not documents]:
    raise ValueError(f"the clusters {empty} hold no documents; leave them out")
  twice = [key for key, count in Counter(map(key_of, clusters)).items() if count > 1]
  if twice:
    raise ValueError(f"{len(twice)} clusters appear twice; give each once, and more `proposals` instead")

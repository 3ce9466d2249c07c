"""What the page and the card say about data sets: some numbers of each example, and a few examples whole.

One pass over the examples, which may be more than memory holds.
"""

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TypeVar

from qwenlong_jax.types import TASKS, Example

SAMPLES = 20

Item = TypeVar("Item")


@dataclass(frozen=True)
class Fact:
  """An example in numbers.

  `tokens` of context and question, None where its provenance does not say. `depths`: where in the context each piece of
  evidence stands, 0 to 1. `reach`: tokens from the first piece's start to the last one's end, by the context's tokens
  per character; None for a single piece. `pass_rate`: pass@k under a model; None where it was not measured.
  `model`: the language model that took part in the making, "" for none; `version`: of the generator.
  """

  split: str
  task: str
  kind: str
  domain: str
  version: str
  model: str
  tokens: int | None
  depths: tuple[float, ...]
  reach: float | None
  documents: int
  pass_rate: float | None


@dataclass(frozen=True)
class Survey:
  """Facts of all examples, and those that are shown, with their splits."""

  facts: tuple[Fact, ...]
  shown: tuple[tuple[str, Example], ...]


def survey(examples: Mapping[str, Iterable[Example]], count: int = SAMPLES) -> Survey:
  """Reads the examples of every split once; which are shown follows from their ids, tasks and kinds in turn."""
  facts = []
  # Of each task and kind the `count` whose ids have the least digests, the largest on top to be replaced.
  groups: dict[tuple[str, str], list[tuple[int, str, str, Example]]] = {}
  for split, found in examples.items():
    for example in found:
      facts.append(fact(split, example))
      group = groups.setdefault((facts[-1].task, facts[-1].kind), [])
      digest = int.from_bytes(hashlib.sha256(f"{split}/{example.id}".encode()).digest()[:8], "big")
      push = heapq.heappush if len(group) < count else heapq.heappushpop
      push(group, (-digest, split, example.id, example))
  return Survey(tuple(facts), tuple(_in_turn(groups)[:count]))


def fact(split: str, example: Example) -> Fact:
  known, length = example.provenance, max(len(example.context), 1)
  tokens, spans = known.get("tokens"), example.evidence
  reach = None
  if len(spans) > 1 and tokens is not None:
    reach = (max(span.end for span in spans) - min(span.start for span in spans)) / length * tokens
  return Fact(
    split=split,
    task=example.task,
    kind=str(known.get("kind") or "–"),
    domain=str(known.get("domain") or "–"),
    version=str(known.get("generator") or "").rpartition("/")[2],
    model=str(known.get("model") or ""),
    tokens=tokens,
    depths=tuple((span.start + span.end) / 2 / length for span in spans),
    reach=reach,
    documents=len({span.document for span in spans}),
    pass_rate=known.get("pass_rate"),
  )


def tasks(facts: Iterable[Fact]) -> list[str]:
  """Those that there are, in the order of types.TASKS."""
  found = {fact.task for fact in facts}
  return [task for task in TASKS if task in found] + sorted(found - set(TASKS))


def _in_turn(groups: Mapping[tuple[str, str], list[tuple[int, str, str, Example]]]) -> list[tuple[str, Example]]:
  """A task after the other, and within a task a kind after the other."""
  by_task: dict[str, list[list[tuple[str, Example]]]] = {}
  for (task, _), group in sorted(groups.items()):
    members = [(split, example) for _, split, _, example in sorted(group, reverse=True, key=lambda entry: entry[:3])]
    by_task.setdefault(task, []).append(members)
  return alternate([alternate(kinds) for kinds in by_task.values()])


def alternate(lists: Sequence[Sequence[Item]]) -> list[Item]:
  """The first of every list, the second of every list, and so on."""
  return [item for item in chain.from_iterable(zip_longest(*lists)) if item is not None]

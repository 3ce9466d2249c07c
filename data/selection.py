"""Which examples are trained on: none that a test set holds, and equal numbers by difficulty.

Difficulty is pass@k: the fraction of a model's k answers to an example that were right.
"""

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt64

from qwenlong_jax.data import deduplication
from qwenlong_jax.data.documents import needed
from qwenlong_jax.data.strings import read_strings
from qwenlong_jax.types import Example

GRAM = 13  # words in a row
SIMILAR = 90  # percent of token_set_ratio
# A question of fewer words is, as a set of words, part of too many others; one of more is a context.
_QUESTION_WORDS = (5, 120)
_ASKING = ("question", "query", "problem", "instruction", "prompt", "input", "content")
_AROUND = 500  # characters before and after a piece of evidence, of the lines that it stands in
_PENDING = 4_000_000  # hashes that wait to be sorted: 32 MB
_FACTOR = 0x9E3779B97F4A7C15  # odd: no word's hash is lost in a product modulo 2**64


@dataclass(frozen=True)
class _TestSet:
  """`grams`: the sorted hashes of all its 13-grams, 8 bytes each; `questions` as sets of words in one string each."""

  path: str
  grams: UInt64[np.ndarray, " n"]
  questions: tuple[str, ...]


@dataclass(frozen=True)
class Contamination:
  """Test sets that no example may share a question or a run of words with."""

  tests: tuple[_TestSet, ...]

  @classmethod
  def of(cls, paths: Iterable[str | Path]) -> "Contamination":
    """Reads test sets: JSONL, JSON, Parquet or text, of which every string counts.

    Questions are strings of 5 to 120 words that end with a question mark or whose field is named as one ("question",
    "query", "problem", "instruction", "prompt", "input", "content"); of a longer one with such a name, its last
    paragraph.

    Raises:
      FileNotFoundError: a file is not there.
      ValueError: a file of another kind, or one that holds no string.
    """
    return cls(tuple(_read(Path(path)) for path in paths))

  def hit(self, example: Example) -> str:
    """Which test set holds the example, and by what text; "" if none does.

    It is held if its question and answer, or the lines that its evidence stands in, share 13 words in a row with a
    test set, or if its question's words are those of a test's question (token_set_ratio of at least 90).
    """
    if not self.tests:
      return ""
    question = " ".join(_words(example.question))
    alike = needed("rapidfuzz.fuzz").token_set_ratio
    own = [(words, _grams(words)) for words in map(_words, _own(example))]
    for test in self.tests:
      for words, grams in own:
        where = np.flatnonzero(_known(grams, test.grams))
        if len(where):
          return f"{test.path}: shares {GRAM} words in a row: {' '.join(words[where[0] : where[0] + GRAM])}"
      found = needed("rapidfuzz.process").extractOne(question, test.questions, scorer=alike, score_cutoff=SIMILAR)
      if found is not None:
        return f"{test.path}: asks alike ({found[1]:.0f}%): {found[0]}"
    return ""


def _read(path: Path) -> _TestSet:
  grams, strings, waiting = np.empty(0, np.uint64), 0, 0
  pending: list[np.ndarray] = []
  questions: dict[str, None] = {}
  for field, text in read_strings(path):
    strings += 1
    words = _words(text)
    pending.append(_grams(words))
    waiting += len(pending[-1])
    if waiting > _PENDING:
      grams, pending, waiting = np.unique(np.concatenate([grams, *pending])), [], 0
    if asked := _asked(field, text, words):
      questions[asked] = None
  if not strings:
    raise ValueError(f"{path} holds no text; give a test set of questions or contexts, or leave it out")
  return _TestSet(str(path), np.unique(np.concatenate([grams, *pending])), tuple(questions))


def _asked(field: str, text: str, words: Sequence[str]) -> str:
  """The question that a string is or ends with, as its words; "" if it is none."""
  least, most = _QUESTION_WORDS
  named = any(name in field.lower() for name in _ASKING)
  if named and len(words) > most:
    words = _words(text.strip().split("\n\n")[-1])
  asks = named or text.rstrip().endswith("?")
  return " ".join(words) if asks and least <= len(words) <= most else ""


def _own(example: Example) -> Iterator[str]:
  """The texts of an example that are its own: what is asked and answered, and the lines that say so."""
  yield f"{example.question}\n{example.answer}"
  context = example.context
  for span in example.evidence:
    first = max(context.rfind("\n", 0, span.start) + 1, span.start - _AROUND)
    end = context.find("\n", span.end)
    yield context[first : min(len(context) if end < 0 else end, span.end + _AROUND)]


def _words(text: str) -> list[str]:
  return deduplication.words(unicodedata.normalize("NFKC", text))


def _grams(words: Sequence[str]) -> UInt64[np.ndarray, " n"]:
  """A hash of every 13 words in a row."""
  count = len(words) - GRAM + 1
  if count < 1:
    return np.empty(0, np.uint64)
  hashes = np.fromiter(map(_hash, words), np.uint64, len(words))
  total = np.zeros(count, np.uint64)
  for place in range(GRAM):
    total = total * np.uint64(_FACTOR) + hashes[place : place + count]
  return total


def _known(grams: UInt64[np.ndarray, " m"], known: UInt64[np.ndarray, " n"]) -> Bool[np.ndarray, " m"]:
  """Which of the grams are among the sorted ones: the time of a search for each, whatever there is of the others."""
  if not len(known):
    return np.zeros(len(grams), bool)
  return known[np.minimum(np.searchsorted(known, grams), len(known) - 1)] == grams


@lru_cache(maxsize=1 << 17)
def _hash(word: str) -> int:
  return int.from_bytes(blake2b(word.encode(errors="replace"), digest_size=8).digest(), "little")


def pass_bins(rates: Sequence[float], bins: int) -> list[int]:
  """The uniform bin of [0, 1] that each pass@k lies in, counted from 0; 1.0 lies in the last.

  Raises:
    ValueError: no bin, or a rate outside [0, 1].
  """
  if bins < 1:
    raise ValueError(f"{bins=} must be at least 1")
  if wrong := [rate for rate in rates if not 0 <= rate <= 1]:
    raise ValueError(f"a pass@k of {wrong[0]} is not a fraction; give right answers / k")
  # Of 29 / 100 times 100 the product is a hair less than 29.
  return [min(int(rate * bins + 1e-9), bins - 1) for rate in rates]


def stratify(sources: Sequence[str], rates: Sequence[float], bins: int, per_bin: int, seed: int) -> list[int]:
  """Places of examples drawn by chance, of each source `per_bin` from every bin of pass@k.

  A bin that holds fewer gives all it has: few examples are of middling difficulty, and the smallest bin would decide.

  Args:
    sources: where each example comes from; a source is stratified for itself (section 4.2).
    rates: pass@k of each under the base model.

  Raises:
    ValueError: sources and rates differ in number, per_bin is less than 1, and as `pass_bins`.
  """
  if len(sources) != len(rates):
    raise ValueError(f"{len(sources)} sources for {len(rates)} pass rates; give one of each to every example")
  if per_bin < 1:
    raise ValueError(f"{per_bin=} examples from each bin must be at least 1")
  members: dict[tuple[str, int], list[int]] = {}
  for place, member in enumerate(zip(sources, pass_bins(rates, bins))):
    members.setdefault(member, []).append(place)
  chosen: list[int] = []
  for (source, number), places in members.items():
    # A source's draw does not change with the others there are.
    rng = np.random.default_rng([seed, _hash(source), number])
    chosen += (places[n] for n in rng.permutation(len(places))[:per_bin])
  return sorted(chosen)

"""What shortcuts score on synthetic long-context questions: each should be near chance on every kind of every task.

  python experiments/benchmark_shortcuts.py --data=runs/synthesize/data      # 40 s for 1,000 samples

Shortcuts, each blind to what a question is about:
  BM25 top-1         of passages of 100 words, their excerpt's title before them, the nearest to the question with its
                     options; the candidate that stands first in it, any one if none does
  last number        of the context
  last candidate     in the context
  most gaps          the candidate that stands first in the excerpt of which most is left out in between (for "both",
                     in the title after it): what was put together for the question may look put together
  most frequent      candidate in the context
  question alone     the most frequent answer to train's questions of this kind; asked on the other splits only
  shared words       multiple choice: the option that has most words in common with the question
Chance is any one of the sample's candidates; a model's question has none beside the answer, and is left out. Prints a
table with 95% intervals (Wilson's); `!` marks what lies above chance by more than its interval: there the generator is
wrong. Writes `shortcuts.json` beside the data.
"""

import argparse
import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from check_data import Record, records
from recompute import agree
from reread import GAP, excerpts, quantity
from tqdm import tqdm

from qwenlong_jax.data.ranking import BM25

PASSAGE = 100  # words
_Z = 1.96
LETTERS = "ABCDEFGHIJ"
ORDER = (
  "BM25 top-1", "last number", "most frequent", "question alone", "shared words", "last candidate", "most gaps",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
  """What a shortcut may look at. `candidates`: of multiple choice the options; `right` is one of them."""

  split: str
  task: str
  kind: str
  context: str
  question: str
  candidates: tuple[str, ...]
  right: str
  options: bool
  dense: bool  # scored by likeness

  @staticmethod
  def of(split: str, record: Record) -> "Sample":
    origin = record["provenance"]
    options = "options" in origin["program"]
    candidates = tuple(dict.fromkeys(origin["candidates"]))
    right = origin["candidates"][LETTERS.index(record["answer"])] if options else record["answer"]
    names = (record["task"], origin["kind"], record["context"], record["question"])
    return Sample(split, *names, candidates, right, options, origin["reward"] == "sequence")

  def score(self, answer: str) -> float:
    if self.dense:
      return SequenceMatcher(None, answer.strip(), self.right.strip()).ratio()
    return float(agree(answer, self.right))

  def chance(self) -> float:
    return sum(map(self.score, self.candidates)) / len(self.candidates)

  def any_one(self, of: Sequence[str], who: str) -> str:
    """By a hash: the same in every run, another for each shortcut `who`."""
    text = f"{who}\n{self.question}\n{self.context}"
    return sorted(of)[int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % len(of)]


def words(text: str) -> list[str]:
  return re.findall(r"\w+", text.casefold())


def _spaced(text: str) -> str:
  return f" {' '.join(words(text))} "


def passages(context: str) -> list[str]:
  """Runs of 100 words, an excerpt's title before each of its own; what stands before the first has none."""
  every = excerpts(context)
  before = context[: every[0].start] if every else context
  found = []
  for title, body in [("", re.sub(r"=== .+ ===\s*\Z", "", before)), *((e.title, e.body) for e in every)]:
    parts = body.split()
    found += [f"{title}\n{' '.join(parts[n : n + PASSAGE])}" for n in range(0, len(parts), PASSAGE)]
  return found


def nearest(sample: Sample) -> str:
  every = passages(sample.context)
  ranker = BM25()
  ranker.index([words(passage) for passage in every], show_progress=False)
  query = [word for word in words(sample.question) if word in ranker.vocab_dict]
  return _first_in(every[int(ranker.get_scores(query).argmax())] if query else "", sample, "nearest")


def _first_in(passage: str, sample: Sample, who: str) -> str:
  """The candidate that stands first in a passage, any one if none does. Of a long candidate its start is enough."""
  text = _spaced(passage)
  where = {candidate: text.find(_spaced(candidate)[:80]) for candidate in sample.candidates}
  standing = [candidate for candidate in sample.candidates if where[candidate] >= 0]
  return min(standing, key=lambda c: where[c]) if standing else sample.any_one(sample.candidates, who)


def most_gaps(sample: Sample) -> str:
  every = excerpts(sample.context)
  gaps = [e.body.strip().removeprefix(GAP).removesuffix(GAP).count(f"\n{GAP}\n") for e in every]
  most = gaps.index(max(gaps))
  if sample.kind == "both":
    return _first_in(every[min(most + 1, len(every) - 1)].title, sample, "gaps")
  return _first_in(every[most].body, sample, "gaps")


def last_candidate(sample: Sample) -> str:
  text = _spaced(sample.context)
  where = {candidate: text.rfind(_spaced(candidate)) for candidate in sample.candidates}
  last = max(sample.candidates, key=lambda c: where[c])
  return last if where[last] >= 0 else sample.any_one(sample.candidates, "last candidate")


def last_number(sample: Sample) -> str:
  """In multiple choice the option that is it, any one if none is."""
  found = re.findall(r"\d[\d,]*(?:\.\d+)?", sample.context)
  number = found[-1].rstrip(",") if found else ""
  if not sample.options:
    return number
  wanted = quantity(number)
  same = [o for o in sample.candidates if wanted and (q := quantity(o)) and q.number == wanted.number]
  return sample.any_one(same or sample.candidates, "last")


def most_frequent(sample: Sample) -> str:
  text = _spaced(sample.context)
  times = {candidate: text.count(_spaced(candidate)) for candidate in sample.candidates}
  return sample.any_one([candidate for candidate in times if times[candidate] == max(times.values())], "frequent")


def shared_words(sample: Sample) -> str:
  """The options' lines are no part of the question here."""
  asked = set(words(sample.question.split("\n(A) ")[0]))
  common = {option: len(asked & set(words(option))) for option in sample.candidates}
  return sample.any_one([option for option in common if common[option] == max(common.values())], "shared")


def usual(samples: Sequence[Sample]) -> dict[tuple[str, str], str]:
  """By task and kind the most frequent answer of train, in multiple choice the most frequent letter."""
  times: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
  for sample in samples:
    if sample.split == "train":
      answer = LETTERS[sample.candidates.index(sample.right)] if sample.options else sample.right
      times[sample.task, sample.kind][answer] += 1
  return {key: counted.most_common(1)[0][0] for key, counted in times.items()}


def interval(mean: float, count: int) -> tuple[float, float]:
  """Wilson's, of 95%; for scores between 0 and 1 it is wider than need be."""
  middle = (mean + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
  half = _Z / (1 + _Z**2 / count) * math.sqrt(mean * (1 - mean) / count + _Z**2 / (4 * count**2))
  return max(middle - half, 0.0), min(middle + half, 1.0)


def measured(samples: Sequence[Sample]) -> list[dict[str, Any]]:
  """A row per task, kind and shortcut, of samples that have candidates."""
  samples = [sample for sample in samples if len(sample.candidates) > 1]
  answers = usual(samples)

  def alone(sample: Sample) -> str:
    answer = answers.get((sample.task, sample.kind), "")
    return sample.candidates[LETTERS.index(answer)] if sample.options and answer else answer

  shortcuts: dict[str, tuple[Callable[[Sample], str], Callable[[Sample], bool]]] = {
    "BM25 top-1": (nearest, lambda s: True),
    "last number": (last_number, lambda s: True),
    "last candidate": (last_candidate, lambda s: True),
    "most gaps": (most_gaps, lambda s: True),
    "most frequent": (most_frequent, lambda s: True),
    "question alone": (alone, lambda s: s.split != "train"),
    "shared words": (shared_words, lambda s: s.options),
  }
  scores: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
  for sample in tqdm(samples, desc="answering", dynamic_ncols=True):
    chance = sample.chance()
    for name, (answer, asked) in shortcuts.items():
      if asked(sample):
        score = sample.score(answer(sample)), chance
        scores[sample.task, sample.kind, name].append(score)
        scores[sample.task, "all", name].append(score)
  return [_row(*key, pairs) for key, pairs in sorted(scores.items())]


def _row(task: str, kind: str, name: str, pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
  score, chance = (sum(pair[n] for pair in pairs) / len(pairs) for n in range(2))
  low, high = interval(score, len(pairs))
  row = {"task": task, "kind": kind, "shortcut": name, "samples": len(pairs), "score": score, "chance": chance}
  return row | {"low": low, "high": high, "above": low > chance}


def table(rows: Sequence[dict[str, Any]]) -> str:
  names = [name for name in ORDER if any(row["shortcut"] == name for row in rows)]
  cells = {(row["task"], row["kind"], row["shortcut"]): row for row in rows}
  lines = [f"| task | kind | samples | chance | {' | '.join(names)} |"]
  lines.append("|---|---" + "|---:" * (2 + len(names)) + "|")
  for task, kind in dict.fromkeys((row["task"], row["kind"]) for row in rows):
    first = cells[task, kind, names[0]]
    shown = [_cell(cells.get((task, kind, name))) for name in names]
    lines.append(f"| {task} | {kind} | {first['samples']} | {first['chance']:.2f} | {' | '.join(shown)} |")
  return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
  if row is None:
    return ""
  return f"{row['score']:.2f} ({row['low']:.2f}-{row['high']:.2f}){' !' if row['above'] else ''}"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
  parser.add_argument("--data", type=Path, required=True, help="folder of train, validation, test")
  data = parser.parse_args().data
  rows = measured([Sample.of(split, record) for split, record in records(data)])
  print(table(rows))
  above = [row for row in rows if row["above"] and row["kind"] != "all"]
  print(f"{len(above)} of {len([row for row in rows if row['kind'] != 'all'])} are above chance")
  (data / "shortcuts.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()

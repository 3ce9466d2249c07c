"""Which of the samples that were written the data sets keep: no question twice, whatever its options, task or split."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from qwenlong_jax.data import loading
from qwenlong_jax.data.selection import Contamination
from qwenlong_jax.data.synthesis.multiple_choice import stem
from qwenlong_jax.data.synthesis.parts import Block, Settings, samples
from qwenlong_jax.types import TASKS, Example


@dataclass(frozen=True, slots=True)
class Written:
  """A sample's question without its options, and why it cannot be kept, if so: "given_up", "contaminated" or a screen's
  reason."""

  question: str
  unfit: str = ""


@dataclass(frozen=True, slots=True)
class Fate:
  """What becomes of a sample: "kept", "duplicate", "surplus", or why it is unfit."""

  block: Block
  what: str


def written(settings: Settings, block: Block, tests: Contamination) -> Iterator[Written]:
  """What there is to know of a part's samples before they are joined."""
  for line in samples(settings, block):
    if line["example"] is None:
      yield Written("", line.get("screened", "given_up"))
      continue
    example = loading.example_of(line["example"])
    reason = tests.hit(example)
    if reason:
      print(f"left out {example.id}: {reason}", flush=True)
    yield Written(stem(example.question), "contaminated" if reason else "")


def fates(settings: Settings, read: Mapping[Block, Sequence[Written]]) -> Iterator[Fate]:
  """Of all samples, in the order of the data sets. Of each task and split as many are kept as are wanted, in turn from
  all clusters; who asks what another asks is left out, the splits' order deciding."""
  seen: set[str] = set()
  for split, wanted in settings.samples:
    for task in TASKS:
      kept = 0
      mine = [block for block in read if (block.cluster.split, block.task) == (split, task)]
      for block, sample in _by_turns(mine, lambda block: [(block, one) for one in read[block]]):
        what = sample.unfit or ("duplicate" if sample.question in seen else "kept" if kept < wanted else "surplus")
        if what == "kept":
          seen.add(sample.question)
          kept += 1
        yield Fate(block, what)


def kept(settings: Settings, decided: Sequence[Fate], counts: Counter[str]) -> Iterator[Example]:
  """The examples of one split, and what became of the others by reason and task; `decided` is `fates` of the split."""
  for task in TASKS:
    mine = [fate for fate in decided if fate.block.task == task]
    blocks = list(dict.fromkeys(fate.block for fate in mine))
    counts[f"kept/{task}"] = 0
    for fate, line in zip(mine, _by_turns(blocks, lambda block: samples(settings, block)), strict=True):
      counts.update(f"dropped/{reason}" for reason in line["dropped"])
      counts[f"{fate.what}/{task}"] += 1
      if fate.what == "kept":
        yield loading.example_of(line["example"])


def _by_turns(blocks: Sequence[Block], lines: Callable[[Block], Iterable[Any]]) -> Iterator[Any]:
  """The lines of all blocks, one from each cluster at a time."""
  clusters = {block.cluster: [b for b in blocks if b.cluster == block.cluster] for block in blocks}

  def of(mine: Sequence[Block]) -> Iterator[Any]:
    for block in mine:
      yield from lines(block)

  for turn in zip_longest(*(of(mine) for mine in clusters.values())):
    yield from (line for line in turn if line is not None)

"""What the steps of a synthesis work on, and where its parts lie; each is written all of it or nothing."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qwenlong_jax.files import write_text
from qwenlong_jax.types import Example

BLOCK = 20  # samples of a part


@dataclass(frozen=True)
class Settings:
  """`shares`: percent of the documents by split; `samples`: by split, of each task; `targets`: lengths in tokens;
  `reworded`, `screened`: by models, before samples count.
  """

  folder: str
  documents: tuple[str, ...]
  seed: int
  languages: tuple[str, ...]
  threshold: float
  cluster: int
  shares: tuple[tuple[str, int], ...]
  samples: tuple[tuple[str, int], ...]
  targets: tuple[int, ...]
  tokenizer: str
  vocab_size: int
  reworded: bool = False
  screened: bool = False

  def parts(self, step: str) -> Path:
    return Path(self.folder) / "parts" / step


@dataclass(frozen=True, order=True)
class Chunk:
  """Some of the files, as `corpus.files` gives them."""

  number: int
  files: tuple[tuple[Path, Path, str], ...]

  def part(self, settings: Settings) -> Path:
    return settings.parts("read") / f"{self.number:06d}.json"


@dataclass(frozen=True, order=True)
class Cluster:
  split: str
  domain: str
  number: int

  @property
  def name(self) -> str:
    return f"{self.split}-{self.domain}-{self.number:04d}"

  def part(self, settings: Settings) -> Path:
    return settings.parts("survey") / f"{self.name}.json"


@dataclass(frozen=True, order=True)
class Block:
  """Samples [first, first + count) of a task from a cluster; a model's have a `maker`, by whom they are counted."""

  cluster: Cluster
  task: str
  first: int
  count: int
  maker: str = ""

  def part(self, settings: Settings) -> Path:
    maker = f"-{self.maker}" if self.maker else ""
    return settings.parts("samples") / f"{self.cluster.name}-{self.task}{maker}-{self.first:06d}.jsonl"

  def reworded(self, settings: Settings) -> Path:
    return settings.parts("reworded") / self.part(settings).name

  def worded(self, settings: Settings) -> Path:
    """The samples in the words in which they are asked."""
    reworded = settings.reworded and self.task == "corpus_numeric"
    return self.reworded(settings) if reworded else self.part(settings)

  def screened(self, settings: Settings) -> Path:
    return settings.parts("screened") / self.part(settings).name


def cut(block: Block) -> Iterator[Block]:
  """In parts of a usual size."""
  for first in range(0, block.count, BLOCK):
    yield replace(block, first=block.first + first, count=min(BLOCK, block.count - first))


def samples(settings: Settings, block: Block) -> Iterator[dict[str, Any]]:
  """What counts of a block: lines of `as_line`, with `screened` where a screen gave it up.

  Raises:
    ValueError: the part is damaged.
  """
  return read_lines(block.screened(settings) if settings.screened else block.worded(settings))


def as_line(number: int, example: Example | None, dropped: list[str]) -> dict[str, Any]:
  """A sample as a part holds it: its number, the example (None: given up), why drafts were dropped."""
  return {"number": number, "example": None if example is None else asdict(example), "dropped": dropped}


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
  with path.open(encoding="utf-8") as lines:
    for line in lines:
      try:
        yield json.loads(line)
      except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and start again, which writes it anew") from error


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
  write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

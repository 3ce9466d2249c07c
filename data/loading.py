"""Examples to shards, and shards to an endless stream of task-balanced batches that resumes exactly.

A data set is a folder of ArrayRecord files, `<task>-00000-of-00002.array_record`, one JSON record for each example, and
`manifest.json`, which counts them. Each file is written under a temporary name and renamed, the manifest last: a folder
with a manifest is complete.

The stream: every task's examples are shuffled anew in each epoch and repeated, then mixed in the order of `balancing`.
It is a pure function of (seed, row). A host reads only its own rows of each batch, so that neither the order nor an
iterator's state depends on how many hosts there are.
"""

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grain
import grain.python
import numpy as np
from absl import flags
from array_record.python import array_record_module

from qwenlong_jax.data import balancing
from qwenlong_jax.files import publish, write_text
from qwenlong_jax.types import TASKS, Example, Span

FORMAT = 1
MANIFEST = "manifest.json"
_REMEDY = "copy the data set again or write it anew with write_shards"


def write_shards(folder: str | os.PathLike, examples: Iterable[Example], shards: int = 1) -> None:
  """Writes `examples` as `shards` files for each task, in their order; one at a time in memory.

  Raises:
    ValueError: shards < 1 or more than a task has examples; no example, an unknown task, or two examples of one id.
    FileExistsError: the folder already holds a data set.
  """
  folder = Path(folder)
  if shards < 1:
    raise ValueError(f"{shards=} must be at least 1")
  if (folder / MANIFEST).exists():
    raise FileExistsError(f"{folder} already holds a data set ({MANIFEST}); choose another folder or delete it first")
  folder.mkdir(parents=True, exist_ok=True)
  drafts = folder / ".drafts"
  shutil.rmtree(drafts, ignore_errors=True)  # of a call that was killed
  drafts.mkdir()
  try:
    counts = _draft(drafts, examples)
    if not counts:
      raise ValueError(f"no examples to write to {folder}; generate some first")
    if few := [task for task, count in counts.items() if count < shards]:
      raise ValueError(f"{shards=} is more than the {counts[few[0]]} examples of {few[0]}; use fewer shards")
    files = {}
    for task, count in counts.items():
      records = array_record_module.ArrayRecordReader(str(drafts / task))
      for shard in range(shards):
        name = f"{task}-{shard:05d}-of-{shards:05d}.array_record"
        part = (shard + 1) * count // shards - shard * count // shards
        _write_shard(folder / name, (records.read() for _ in range(part)))
        files[name] = {"task": task, "examples": part, "bytes": (folder / name).stat().st_size}
      records.close()
  finally:
    shutil.rmtree(drafts)
  manifest = {"format": FORMAT, "tasks": counts, "files": files}
  write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def open_all(folder: str | os.PathLike) -> Sequence[Example]:
  """Every example of a data set, task by task, in the order in which they were written; read when it is asked for."""
  return _All(list(_open(Path(folder)).values()))


def read_each(folder: str | os.PathLike) -> Iterator[Example]:
  """The same one after another."""
  return iter(open_all(folder))


def read_all(folder: str | os.PathLike) -> list[Example]:
  return list(open_all(folder))


def load(
  folder: str | os.PathLike,
  batch_size: int,
  seed: int,
  rows: Sequence[int] | np.ndarray | None = None,
  workers: int = 0,
  balanced: bool = True,
) -> grain.DatasetIterator:
  """An endless iterator over task-balanced batches: `list[Example]`, of each batch those of its `rows` (None: all).

  Without `balanced` all tasks are shuffled together and a batch holds what comes: the report's baseline in Table 2.

  Tasks rotate in the order of types.TASKS. `get_state()` and `set_state()` resume it exactly, in mid-epoch too, with
  the same batch_size, seed and workers, whatever the rows. With workers > 0 that many processes read ahead; they are
  spawned, so a script must start its work under `if __name__ == "__main__":`.

  Raises:
    FileNotFoundError, ValueError: a missing, incomplete or damaged data set, a task without examples, or rows that are
      not of the batch; each names the file or number and what to do.
  """
  own = list(range(batch_size)) if rows is None else [int(row) for row in rows]
  if not own or not 0 <= min(own) <= max(own) < batch_size:
    raise ValueError(f"rows={own} must be at least one of the {batch_size=} rows 0..{batch_size - 1}")
  sources = _open(Path(folder))
  if missing := [task for task in TASKS if not len(sources.get(task, ()))]:
    raise ValueError(
      f"{folder} holds no examples of {', '.join(missing)}: a balanced batch needs all of {', '.join(TASKS)}; "
      "generate examples of every task and write the data set again"
    )
  if workers < 0:
    raise ValueError(f"{workers=} must be 0 (read in this process) or more")
  if balanced:
    streams = [
      grain.MapDataset.source(sources[task]).seed(_seed(seed, number)).shuffle().repeat()
      for number, task in enumerate(TASKS)
    ]
  else:
    pool = grain.MapDataset.concatenate([grain.MapDataset.source(sources[task]) for task in TASKS])
    streams = [pool.seed(_seed(seed, len(TASKS))).shuffle().repeat()]
  mixed = grain.MapDataset.select_from_datasets(streams, _Mix(batch_size, own, len(streams)))
  batches = mixed.batch(len(own), drop_remainder=True, batch_fn=list).to_iter_dataset(grain.ReadOptions(num_threads=0))
  if workers:
    _parse_flags()
    batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
  return iter(batches)


class _Mix(grain.python.DatasetSelectionMap):
  """Grain's view of the order: this host's n-th row -> (stream, row of that stream)."""

  def __init__(self, batch_size: int, rows: Sequence[int], streams: int):
    self._batch_size, self._rows, self._streams = batch_size, rows, streams

  def __len__(self) -> int:
    return sys.maxsize // self._batch_size * len(self._rows)

  def __getitem__(self, index: int) -> tuple[int, int]:
    step, place = divmod(index, len(self._rows))
    return balancing.place(step * self._batch_size + self._rows[place], self._streams)


class _Source:
  """One task's examples by number; a record that cannot be read is reported with its file."""

  def __init__(self, paths: Sequence[Path], counts: Sequence[int]):
    self._paths, self._counts = paths, counts
    self._records = grain.sources.ArrayRecordDataSource([str(path) for path in paths])

  def __len__(self) -> int:
    return sum(self._counts)

  def __getitem__(self, index: Any) -> Example:
    try:
      return example_of(json.loads(self._records[index]))
    except Exception as error:
      raise ValueError(f"{self._path(int(index))} is damaged at example {index}: {error}; {_REMEDY}") from error

  def _path(self, index: int) -> Path:
    for path, count in zip(self._paths, self._counts):
      if index < count:
        return path
      index -= count
    return self._paths[-1]


class _All(Sequence[Example]):
  """The examples of several sources, one behind the other."""

  def __init__(self, sources: Sequence[_Source]):
    self._sources = sources

  def __len__(self) -> int:
    return sum(map(len, self._sources))

  def __getitem__(self, index: Any) -> Any:
    for source in self._sources:
      if index < len(source):
        return source[index]
      index -= len(source)
    raise IndexError(index)


def _open(folder: Path) -> dict[str, _Source]:
  """Each task's source, after every file was compared with the manifest."""
  files = _manifest(folder)["files"]
  for name, expected in files.items():
    _check_shard(folder / name, expected)
  parts: dict[str, list[str]] = {}
  for name, expected in files.items():
    parts.setdefault(expected["task"], []).append(name)
  return {
    task: _Source([folder / name for name in names], [files[name]["examples"] for name in names])
    for task, names in parts.items()
  }


def _manifest(folder: Path) -> dict[str, Any]:
  path = folder / MANIFEST
  if not folder.is_dir():
    raise FileNotFoundError(f"no data set at {folder}: the folder does not exist; write one with write_shards")
  if not path.exists():
    raise FileNotFoundError(
      f"{folder} has no {MANIFEST}: not a data set, or its writing was interrupted; write it again"
    )
  try:
    manifest = json.loads(path.read_text(encoding="utf-8"))
    found = manifest["format"]
  except (json.JSONDecodeError, KeyError, TypeError) as error:
    raise ValueError(f"{path} cannot be read ({error}); {_REMEDY}") from error
  if found != FORMAT:
    raise ValueError(f"{path} says format {found}, this version reads {FORMAT}; write the data set again")
  if not manifest["files"]:
    raise ValueError(f"{folder} is an empty data set; write examples to it with write_shards")
  return manifest


def _check_shard(path: Path, expected: dict[str, Any]) -> None:
  if not path.exists():
    raise FileNotFoundError(f"{path} is missing but {MANIFEST} lists it; {_REMEDY}")
  if (size := path.stat().st_size) != expected["bytes"]:
    raise ValueError(f"{path} has {size} bytes where {MANIFEST} says {expected['bytes']}; {_REMEDY}")
  try:
    reader = array_record_module.ArrayRecordReader(str(path))
    count = reader.num_records()
    reader.close()
  except Exception as error:
    raise ValueError(f"{path} cannot be opened ({error}); {_REMEDY}") from error
  if count != expected["examples"]:
    raise ValueError(f"{path} holds {count} examples where {MANIFEST} says {expected['examples']}; {_REMEDY}")


def _draft(folder: Path, examples: Iterable[Example]) -> dict[str, int]:
  """A file of each task's examples, which come one by one, and how many they are; tasks in the order of TASKS."""
  with ExitStack() as stack:
    writers: dict[str, Any] = {}
    counts = dict.fromkeys(TASKS, 0)
    seen = set()
    for example in examples:
      if example.task not in counts:
        raise ValueError(f"example {example.id} has task {example.task!r}, which is none of {', '.join(TASKS)}")
      if example.id in seen:
        raise ValueError(f"two examples have the id {example.id}; give each its own (another seed makes other ids)")
      seen.add(example.id)
      if example.task not in writers:
        writers[example.task] = _writer(folder / example.task)
        stack.callback(writers[example.task].close)
      writers[example.task].write(json.dumps(dataclasses.asdict(example), ensure_ascii=False).encode())
      counts[example.task] += 1
  return {task: count for task, count in counts.items() if count}


def _write_shard(path: Path, records: Iterable[bytes]) -> None:
  with publish(path) as partial:
    writer = _writer(partial)
    for record in records:
      writer.write(record)
    writer.close()


def _writer(path: Path) -> Any:
  """group_size 1: records are read at random, not in runs."""
  return array_record_module.ArrayRecordWriter(str(path), "group_size:1")


def example_of(fields: dict[str, Any]) -> Example:
  """The example whose fields these are, as JSON keeps them."""
  return Example(**fields | {"evidence": tuple(Span(**span) for span in fields["evidence"])})


def _seed(seed: int, number: int) -> int:
  """A seed of 32 bits for each task, unrelated to those of neighbouring seeds and epochs."""
  return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _parse_flags() -> None:
  """Grain hands absl's flags to its workers and refuses to start where nobody has parsed them (tests, notebooks)."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()

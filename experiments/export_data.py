"""A data set as JSONL or Parquet, with the fields that verl and trainers like it read.

  python experiments/export_data.py --data=runs/synthesize/data --out=exported --format=parquet

Of every split below --data (or of the data set that --data is) one file, OUT/<split>.parquet. A row:

  data_source   qwenlong_jax/<task>: trainers choose the reward by it
  prompt        [{role: user, content}]: the context and, after an empty line, the question
  ability       the task
  reward_model  {style, ground_truth}: "rule", or "sequence" for the dense ratio of needle tasks
  extra_info    {index, split, id, kind, domain, tokens, reasoning, evidence, provenance}; evidence is of characters of
                the content; provenance is JSON in a string, for its fields differ from kind to kind

Examples are read and written one by one, a few row groups' worth of memory whatever their number.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from absl import app, flags
from tqdm import tqdm

from qwenlong_jax.data import loading
from qwenlong_jax.files import publish
from qwenlong_jax.types import Example

FORMATS = ("jsonl", "parquet")
ROWS = 64  # of a row group: 16 MB of contexts of 64K tokens

DATA = flags.DEFINE_string("data", None, "a data set, or a folder of data sets by split", required=True)
OUT = flags.DEFINE_string("out", None, "folder to write the files into", required=True)
FORMAT = flags.DEFINE_enum("format", "parquet", FORMATS, "of the files")


def row(example: Example, index: int, split: str) -> dict[str, Any]:
  """`index` counts the rows of a split from 0."""
  provenance = example.provenance
  content = f"{example.context}\n\n{example.question}" if example.context else example.question
  return {
    "data_source": f"qwenlong_jax/{example.task}",
    "prompt": [{"role": "user", "content": content}],
    "ability": example.task,
    "reward_model": {"style": provenance.get("reward", "rule"), "ground_truth": example.answer},
    "extra_info": {
      "index": index,
      "split": split,
      "id": example.id,
      "kind": provenance.get("kind", ""),
      "domain": provenance.get("domain", ""),
      "tokens": provenance.get("tokens"),
      "reasoning": example.reasoning,
      "evidence": [asdict(span) for span in example.evidence],
      "provenance": json.dumps(provenance, ensure_ascii=False),
    },
  }


def export(data: Path, out: Path, form: str) -> dict[str, int]:
  """Writes every split; how many rows each has.

  Raises:
    FileNotFoundError: no data set at `data` or below it.
    FileExistsError: a file to write is there.
  """
  write: Callable[[Path, Iterable[dict[str, Any]]], int] = write_parquet if form == "parquet" else write_jsonl
  written = {}
  for split, folder in splits(data).items():
    path = out / f"{split}.{form}"
    if path.exists():
      raise FileExistsError(f"{path} is there already; give another --out or delete it")
    examples = tqdm(loading.read_each(folder), desc=split, unit=" rows", dynamic_ncols=True)
    with publish(path) as partial:
      written[split] = write(partial, (row(example, index, split) for index, example in enumerate(examples)))
  return written


def splits(data: Path) -> dict[str, Path]:
  if (data / loading.MANIFEST).exists():
    return {data.resolve().name: data}
  found = {path.parent.name: path.parent for path in sorted(data.glob(f"*/{loading.MANIFEST}"))}
  if not found:
    raise FileNotFoundError(f"no {loading.MANIFEST} in {data} or a folder in it; --data is a run's folder `data`")
  return found


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
  count = 0
  with path.open("w", encoding="utf-8") as file:
    for fields in rows:
      file.write(json.dumps(fields, ensure_ascii=False) + "\n")
      count += 1
  return count


def write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> int:
  import pyarrow as pa
  import pyarrow.parquet as pq

  count = 0
  with pq.ParquetWriter(path, schema(), compression="zstd") as writer:
    for group in groups(rows):
      writer.write_table(pa.Table.from_pylist(group, schema()), row_group_size=ROWS)
      count += len(group)
  return count


def groups(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
  left = iter(rows)
  yield from iter(lambda: list(islice(left, ROWS)), [])


def schema() -> Any:
  """Written down: guessed from a row group's values it would change with them."""
  import pyarrow as pa

  text, number = pa.string(), pa.int64()
  span = pa.struct({"document": text, "start": number, "end": number})
  names = ("split", "id", "kind", "domain", "reasoning", "provenance")
  extra = {"index": number, "tokens": number, "evidence": pa.list_(span)} | dict.fromkeys(names, text)
  return pa.schema(
    {
      "data_source": text,
      "prompt": pa.list_(pa.struct({"role": text, "content": text})),
      "ability": text,
      "reward_model": pa.struct({"style": text, "ground_truth": text}),
      "extra_info": pa.struct(extra),
    }
  )


def main(arguments: list[str]) -> None:
  if len(arguments) > 1:
    raise app.UsageError(f"unexpected argument {arguments[1]!r}; settings are given as --name=value")
  try:
    written = export(Path(DATA.value), Path(OUT.value), FORMAT.value)
  except (OSError, ValueError) as error:
    sys.exit(f"error: {error}")
  for split, count in written.items():
    print(f"{Path(OUT.value) / split}.{FORMAT.value}: {count:,} rows")


if __name__ == "__main__":
  app.run(main)

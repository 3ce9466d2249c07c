"""Every string of a file, with the name of the field that holds it: JSONL, JSON, Parquet and plain text, streamed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROWS = 64  # of a Parquet file, held at a time
_TEXTS = (".txt", ".md")


def read_strings(path: Path) -> Iterator[tuple[str, str]]:
  """(field, string) of all rows, lists and structs included. Of a text file: its paragraphs, without a field.

  Raises:
    FileNotFoundError: the file is not there.
    ValueError: it is of another kind, or damaged.
  """
  if not path.is_file():
    raise FileNotFoundError(f"no file {path}; a test set is a file, and of a folder each file is named")
  match path.suffix.lower():
    case ".jsonl":
      yield from _lines(path)
    case ".json":
      yield from _strings("", _parsed(path.read_text(encoding="utf-8"), str(path)))
    case ".parquet":
      yield from _parquet(path)
    case suffix if suffix in _TEXTS:
      text = path.read_text(encoding="utf-8")
      yield from (("", part) for part in (text, *text.splitlines()) if part.strip())
    case suffix:
      raise ValueError(f"{path}: {suffix or 'no suffix'} is not read; make it .jsonl, .json, .parquet, .txt or .md")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
  with path.open(encoding="utf-8") as lines:
    for number, line in enumerate(lines, 1):
      if line.strip():
        yield from _strings("", _parsed(line, f"{path}, line {number}"))


def _parquet(path: Path) -> Iterator[tuple[str, str]]:
  import pyarrow as pa
  import pyarrow.parquet as pq

  try:
    with pq.ParquetFile(path) as file:
      for batch in file.iter_batches(_ROWS):
        yield from _strings("", batch.to_pylist())
  except pa.ArrowException as error:
    raise ValueError(f"{path} is no Parquet file ({error}); copy it again") from error


def _parsed(text: str, place: str) -> Any:
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(f"{place} is not JSON ({error}); repair it or leave it out") from error


def _strings(field: str, value: Any) -> Iterator[tuple[str, str]]:
  if isinstance(value, str):
    yield field, value
  elif isinstance(value, dict):
    for name, inner in value.items():
      yield from _strings(str(name), inner)
  elif isinstance(value, list):
    for inner in value:
      yield from _strings(field, inner)

"""Documents out of files: text, Markdown, HTML, PDF, source code, tables of separated values, JSONL, Parquet, Hugging
Face data sets on disk.

A file that holds one document is read whole; a file of records is streamed, a line or a batch at a time. What is
damaged, empty or not a text comes back as `Rejected`, never as an exception and never not at all.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from qwenlong_jax.data.documents import (
  CODE_SUFFIXES,
  DOMAINS,
  TABLE_SUFFIXES,
  Document,
  Rejected,
  Source,
  clean,
  domain_of,
  needed,
  title_of,
)
from qwenlong_jax.data.formats import Unreadable, as_markdown, page, pdf, plain, separated

LARGEST = 16 * 2**20  # bytes of a file that is one document, or of a line: 4M tokens; its words are held in memory
ROWS = 64  # of a Parquet file, held at a time
TABLE_ROWS = 50  # of a table's document, at most


# What stands beside the .arrow files of a Hugging Face data set on disk.
_BESIDE_ARROW = {"dataset_info.json", "state.json", "dataset_dict.json"}


def find(roots: Sequence[Path | str]) -> list[Path]:
  """The files of folders and files, sorted; hidden ones (.git) are no documents. A folder that is closed is listed."""
  files: set[Path] = set()
  for root in map(Path, roots):
    if not root.exists():
      raise FileNotFoundError(f"{root} does not exist; a root is a folder of documents or a document")
    files.update(_below(root) if root.is_dir() else [root])
  return sorted(files)


def _below(folder: Path) -> Iterator[Path]:
  try:
    entries = [Path(entry) for entry in os.scandir(folder) if not entry.name.startswith(".")]
  except OSError:
    yield folder
    return
  arrow = any(entry.suffix == ".arrow" for entry in entries)
  for entry in entries:
    if entry.is_dir():
      # A link to a folder may lead in a circle.
      yield from () if entry.is_symlink() else _below(entry)
    elif not (entry.name in _BESIDE_ARROW and (arrow or entry.name == "dataset_dict.json")):
      yield entry


def read(path: Path, root: Path) -> Iterator[Document | Rejected]:
  """The documents of a file, cleaned, with title and domain. Names are relative to `root`, a folder or the file.

  Of a line of JSONL the source's span is the line; Parquet and Arrow have no bytes of a record's own: it is the file.
  """
  name = path.name if path == root else path.relative_to(root).as_posix()
  suffix = path.suffix.lower()
  try:
    if path.is_dir():
      yield Rejected(name, "unreadable", "a folder that may not be listed")
    elif suffix in _RECORDS:
      yield from _some(_RECORDS[suffix](path, name))
    elif suffix in _TEXTS:
      yield _whole(path, name, _TEXTS[suffix])
    else:
      known = " ".join(sorted({*_TEXTS, *_RECORDS} - CODE_SUFFIXES))
      yield Rejected(name, "unknown_format", f"{suffix or 'no suffix'}; known: {known} and source code")
  except Unreadable as why:
    yield Rejected(name, why.reason, why.detail)
  except OSError as error:
    # Without a number it is not the system's: pyarrow's word for a file that is cut.
    yield Rejected(name, "unreadable" if error.errno else "damaged", error.strerror or str(error)[:200])


def _some(documents: Iterable[Document | Rejected]) -> Iterator[Document | Rejected]:
  """The documents, of which there must be one."""
  none = True
  for document in documents:
    none = False
    yield document
  if none:
    raise Unreadable("empty", "no records")


def _whole(path: Path, name: str, extract: Callable[[bytes], tuple[str, str]]) -> Document:
  raw = _bytes(path)
  title, text = extract(raw)
  return _document(name, name, text, Source(name, 0, len(raw), hashlib.sha256(raw).hexdigest()), title)


def _bytes(path: Path) -> bytes:
  size = path.stat().st_size
  if size > LARGEST:
    raise Unreadable("too_large", f"{size:,} bytes; at most {LARGEST:,}, cut it or make it a .jsonl of documents")
  raw = path.read_bytes()
  if not raw.strip():
    raise Unreadable("empty", f"{size} bytes")
  return raw


def _table(path: Path, name: str) -> Iterator[Document | Rejected]:
  """Rows that follow one another, in equal parts under the header: questions go across documents, and a whole table is
  often the only one of its kind. Cut by number alone: which column parts them best no one said."""
  raw = _bytes(path)
  header, *rows = separated(raw)
  source = Source(name, 0, len(raw), hashlib.sha256(raw).hexdigest())
  parts = -(-len(rows) // TABLE_ROWS)
  for part in range(parts):
    first, last = len(rows) * part // parts, len(rows) * (part + 1) // parts
    title = path.stem if parts == 1 else f"{path.stem}, rows {first + 1} to {last}"
    yield _document(f"{name}#{part + 1}", name, as_markdown([header, *rows[first:last]]), source, title)


def _document(ident: str, name: str, text: str, source: Source, title: str = "", domain: str = "") -> Document:
  text = clean(text)
  if not text.strip():
    raise Unreadable("empty", "no text in it")
  title = " ".join(clean(title).split()) or title_of(text, name)
  return Document(ident, domain if domain in DOMAINS else domain_of(text, name), title, text, source)


def _jsonl(path: Path, name: str) -> Iterator[Document | Rejected]:
  """A document per line: `text`, and where there are any `title` and `domain` (one of DOMAINS, else the rules say)."""
  with path.open("rb") as file:
    for number, (start, line) in enumerate(_lines(file), 1):
      end = start + len(line.rstrip(b"\r\n"))
      source = Source(name, start, end, hashlib.sha256(line[: end - start]).hexdigest())
      yield _record(f"{name}#{number}", source, partial(_loaded, line))


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
  """(first byte, line) of each line; of one that is too large the start, as many bytes as are too many."""
  start = 0
  while line := file.readline(LARGEST):
    yield start, line
    start += len(line)
    while len(line) == LARGEST and not line.endswith(b"\n"):
      line = file.readline(LARGEST)
      start += len(line)


def _loaded(line: bytes) -> Any:
  if not line.strip():
    raise Unreadable("empty", "a line without a record")
  if len(line) == LARGEST:
    raise Unreadable("too_large", f"a line of more than {LARGEST:,} bytes")
  try:
    return json.loads(line.decode("utf-8-sig"))
  except (ValueError, RecursionError) as error:
    raise Unreadable("damaged" if line.endswith(b"\n") else "truncated", f"not JSON: {error}") from error


def _record(ident: str, source: Source, load: Callable[[], Any]) -> Document | Rejected:
  try:
    record = load()
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
      raise Unreadable("no_text", "not a record with a string named `text`")
    title, domain = (value if isinstance(value := record.get(key), str) else "" for key in ("title", "domain"))
    return _document(ident, source.path, record["text"], source, title, domain)
  except Unreadable as why:
    return Rejected(ident, why.reason, why.detail)


def _parquet(path: Path, name: str) -> Iterator[Document | Rejected]:
  parquet = needed("pyarrow.parquet")
  pyarrow = needed("pyarrow")
  try:
    # pre_buffer would hold a row group whole.
    with parquet.ParquetFile(path, pre_buffer=False) as file:
      columns = _columns(file.schema_arrow.names)
      yield from _rows(file.iter_batches(ROWS, columns=columns, use_threads=False), path, name)
  except pyarrow.ArrowException as error:
    raise Unreadable("damaged", str(error).splitlines()[0][:200]) from error


def _arrow(path: Path, name: str) -> Iterator[Document | Rejected]:
  pyarrow = needed("pyarrow")
  try:
    with path.open("rb") as file:
      is_file = file.read(6) == b"ARROW1"
      file.seek(0)
      reader = pyarrow.ipc.open_file(file) if is_file else pyarrow.ipc.open_stream(file)
      columns = _columns(reader.schema.names)
      batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)
      yield from _rows((batch.select(columns) for batch in batches), path, name)
      if not is_file:
        _ended(path)
  except pyarrow.ArrowException as error:
    raise Unreadable("damaged", str(error).splitlines()[0][:200]) from error


def _ended(path: Path) -> None:
  """A stream that was cut between two batches reads without an error; its writer closes it with these bytes."""
  with path.open("rb") as file:
    file.seek(-8, os.SEEK_END)
    if file.read() != b"\xff\xff\xff\xff\0\0\0\0":
      raise Unreadable("truncated", "a stream without its end; the records before are read")


def _columns(names: Sequence[str]) -> list[str]:
  if "text" not in names:
    raise Unreadable("no_text", f"columns {', '.join(names)}; wanted one named `text`")
  return [name for name in ("text", "title", "domain") if name in names]


def _rows(batches: Iterable[Any], path: Path, name: str) -> Iterator[Document | Rejected]:
  with path.open("rb") as file:
    source = Source(name, 0, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
  number = 0
  for batch in batches:
    for i in range(batch.num_rows):
      number += 1
      yield _record(f"{name}#{number}", source, partial(_row, batch, i))


def _row(batch: Any, i: int) -> dict[str, Any]:
  try:
    return {name: batch.column(name)[i].as_py() for name in batch.schema.names}
  except UnicodeDecodeError as error:
    raise Unreadable("damaged", f"not UTF-8: {error}") from error


_TEXTS = {suffix: plain for suffix in (".txt", ".md", ".rst", *CODE_SUFFIXES)}
_TEXTS |= {".html": page, ".htm": page, ".pdf": pdf}
_RECORDS = {suffix: _table for suffix in TABLE_SUFFIXES}
_RECORDS |= {".jsonl": _jsonl, ".parquet": _parquet, ".arrow": _arrow}

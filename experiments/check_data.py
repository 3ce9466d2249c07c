"""Every sample of a data set recomputed from its context alone, by a program that shares no code with the generator.

  python experiments/run.py --config=synthesize.py --config.documents=documents --workdir=runs/synthesize
  python experiments/check_data.py --data=runs/synthesize/data --documents=documents      # 20 s for 1,000 samples

Reads {train,validation,test} below --data, and the documents again. Of each sample it checks that the answer comes out
(right), that it is the only one (unique), that the evidence holds what it rests on (evidence) and stands in the
document's own text at the characters given, its bytes unchanged (source), that the excerpts with evidence are enough
(oracle), that lengths and fields are as said (fields). Of a question that a model wrote about a table the query is
known, and run anew; of one over its triples the passages, that they chain and stand there; of any other nothing
recomputes the answer, and only source and fields are checked. Of the data set: no question twice, no document and
no table in two splits.
Prints a table; exits with 1 and the first that are wrong if any is.
"""

import argparse
import csv
import hashlib
import io
import json
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader
from recompute import agree, says, solve
from reread import Excerpt, Quantity, Unclear, excerpts
from tqdm import tqdm

ASPECTS = ("right", "unique", "evidence", "source", "oracle", "fields")
UNKNOWN = ("right", "evidence", "oracle")  # where there is not exactly one answer
WRITTEN = ("source", "fields")  # what is checked of a model's question
NO_DOCUMENT = ("conversation", "frame")  # what is said between excerpts; titles, and headings said again
OTHER_FORMATS = {".html", ".htm", ".pdf", ".parquet", ".arrow"}  # whose text an extractor makes
IN_PARTS = (".csv", ".tsv")  # files of several documents, all of which lie in one split
IN_ROWS = (".parquet", ".arrow")  # files of documents that may lie in several, whose hash all of them bear
# Those of other scripts, which nothing but reading tells apart.
ENCODINGS = (
  "cp1251", "koi8-r", "koi8-u", "iso8859-5", "cp866", "mac-cyrillic", "cp1253", "iso8859-7", "cp1255", "cp1256",
  "iso8859-6", "cp1250", "iso8859-2", "cp1254", "cp1257", "cp874", "cp932", "euc-jp", "gb18030", "big5", "cp949",
)  # fmt: skip
Record = dict[str, Any]
Problem = tuple[str, str, str]  # (of what, which aspect, why)


def records(folder: Path) -> Iterator[tuple[str, Record]]:
  """(split, record) of every sample; the manifests must tell the truth."""
  manifests = sorted(folder.glob("*/manifest.json"))
  if not manifests:
    raise FileNotFoundError(f"no */manifest.json below {folder}; --data is the folder of train, validation and test")
  for path in manifests:
    for name, said in json.loads(path.read_text(encoding="utf-8"))["files"].items():
      file = path.parent / name
      reader = ArrayRecordReader(str(file))
      count = reader.num_records()
      if (count, file.stat().st_size) != (said["examples"], said["bytes"]):
        given = f"{count} records of {file.stat().st_size} bytes"
        raise ValueError(f"{file} holds {given}, {path} says {said}; one of them is old, write the data anew")
      for raw in reader.read(list(range(count))) if count else ():
        yield path.parent.name, json.loads(raw)
      reader.close()


# --- one sample


def check(record: Record, split: str, library: "Library") -> dict[str, str]:
  """By aspect, why the sample is wrong."""
  found: dict[str, str] = {}
  program, context = record["provenance"]["program"], record["context"]
  if wrong := _fields(record, split):
    found["fields"] = wrong
  if wrong := library.unlike(record):
    found["source"] = wrong
  if not program:
    return found
  try:
    answer = solve(program, context)
    right = _outcome(program, answer.value)
  except Unclear as error:
    return found | {"unique": str(error)}
  if not _same(program, record["answer"], right):
    found["right"] = f"the answer is {_shown(right)}, the sample says {record['answer']!r}"
  spans = [(e["start"], e["end"]) for e in record["evidence"]]
  for places in answer.needs:
    if not any(s <= start and end <= e for s, e in spans for start, end in places):
      found["evidence"] = f"no span holds {context[slice(*places[0])]!r}, on which the answer rests"
  if wrong := _oracle(record, right):
    found["oracle"] = wrong
  return found


def _outcome(program: Record, value: str | Quantity) -> str | Quantity:
  """A letter where there are options."""
  if "options" not in program:
    return value
  fitting = [n for n, option in enumerate(program["options"]) if agree(option, value)]
  if len(fitting) != 1:
    raise Unclear(f"{_shown(value)} is {len(fitting)} of the options {program['options']}")
  return "ABCDEFGHIJ"[fitting[0]]


def _same(program: Record, stated: str, right: str | Quantity) -> bool:
  return stated == right if "options" in program else agree(stated, right)


def _shown(value: str | Quantity) -> str:
  return f"{value.number:g} {value.unit}".strip() if isinstance(value, Quantity) else repr(value)


def _oracle(record: Record, right: str | Quantity) -> str:
  """Why who reads nothing but the excerpts with evidence does not come to the answer."""
  program, context = record["provenance"]["program"], record["context"]
  spans = sorted((e["start"], e["end"]) for e in record["evidence"])
  every = excerpts(context)
  enough = [n for n, e in enumerate(every) if any(e.head[0] - 4 <= s and t <= e.end for s, t in spans)]
  if program["kind"] in ("agreement", "request"):
    # What is quoted follows on who quotes it.
    ends = {t for _, t in spans}
    context = "".join(("" if s in ends else "\n\n") + context[s:t] for s, t in spans)
  try:
    found = _outcome(program, solve(program, context, [every[n] for n in enough]).value)
  except Unclear as error:
    return f"from the evidence alone: {error}"
  return "" if found == right else f"from the evidence alone it is {_shown(found)}"


def _fields(record: Record, split: str) -> str:
  origin = record["provenance"]
  tokens, target, characters = origin["tokens"], origin["target"], len(record["context"])
  candidates = origin["candidates"]
  right = candidates["ABCDEFGHIJ".index(record["answer"])] if "options" in origin["program"] else record["answer"]
  wrong = {
    "an empty field": not (record["question"].strip() and record["answer"].strip() and record["evidence"]),
    f"split {origin['split']!r} in folder {split!r}": origin["split"] != split,
    f"{tokens} tokens for a target of {target}": not target / 2 <= tokens <= 1.25 * target,
    f"{tokens} tokens of {characters} characters": not 1.5 <= characters / tokens <= 8,
    "a span outside of the context": any(not 0 <= e["start"] < e["end"] <= characters for e in record["evidence"]),
    f"the answer is none of {candidates}": right not in candidates,
    "a candidate twice": len(set(candidates)) < len(candidates),
    f"the question does not say {says(record['question'], origin['program'])}": bool(
      says(record["question"], origin["program"])
    ),
  }
  return "; ".join(what for what, holds in wrong.items() if holds)


# --- documents


class Library:
  """The documents, read again."""

  def __init__(self, roots: Sequence[Path]):
    for root in roots:
      if not root.exists():
        raise FileNotFoundError(f"{root} is not there; --documents are the folders that the data was made of")
    self.roots = roots
    self.not_read = 0  # spans of formats that need an extractor

  def unlike(self, record: Record) -> str:
    """Why the evidence does not stand in its documents."""
    sources = record["provenance"]["documents"]
    spans = [e for e in record["evidence"] if e["document"] not in NO_DOCUMENT]
    if [s["id"] for s in sources] != [e["document"] for e in spans]:
      return f"{len(sources)} sources for {len(spans)} spans of documents, or of others"
    wrong = (self._unlike(source, record["context"][e["start"] : e["end"]]) for source, e in zip(sources, spans))
    return next(filter(None, wrong), "")

  def _unlike(self, source: Record, quoted: str) -> str:
    path = self._path(source["path"])
    if path is None:
      return f"{source['path']} is in none of {', '.join(map(str, self.roots))}"
    raw = _bytes(path)
    start, end = source.get("characters") or (source["start"], source["end"])
    record = raw[source["start"] : source["end"]] if "characters" in source else raw
    if hashlib.sha256(record).hexdigest() != source["sha256"]:
      return f"{source['id']} has another SHA-256 than {source['sha256'][:12]}..."
    if path.suffix.lower() in OTHER_FORMATS:
      self.not_read += 1
      return ""
    if not any(cleaned(text)[start:end] == quoted for text in _texts(path, record, source["id"])):
      return f"characters {start} to {end} of {source['id']} are not {quoted[:60]!r}"
    return ""

  def _path(self, name: str) -> Path | None:
    candidates = [root if root.is_file() and root.name == name else root / name for root in self.roots]
    return next((path for path in candidates if path.is_file()), None)

  def holds_all(self, pieces: Iterable[str]) -> Path | None:
    """A file in which all the pieces stand."""
    wanted = list(pieces)
    for root in self.roots:
      for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix.lower() not in OTHER_FORMATS | {".jsonl"}:
          raw = _bytes(path)
          text = next(decoded(raw))
          texts = list(map(cleaned, parts(text) if path.suffix.lower() in IN_PARTS else [text]))
          if all(any(piece in text for text in texts) for piece in wanted):
            return path
    return None


def _texts(path: Path, record: bytes, ident: str) -> Iterator[str]:
  """What the document may say, by each encoding that the file may have."""
  suffix = path.suffix.lower()
  if suffix == ".jsonl":
    yield json.loads(record)["text"]
  elif suffix in IN_PARTS:
    number = int(ident.rpartition("#")[2])
    for text in decoded(record):
      yield from parts(text)[number - 1 : number]
  else:
    yield from decoded(record)


@lru_cache(maxsize=64)
def parts(text: str) -> list[str]:
  """The documents of a table of separated values: equal parts of at most 50 rows as Markdown, each with the header."""
  text = text.strip("\r\n")
  head = text.splitlines()[0]
  separator = max(",", ";", "\t", "|", key=head.count)
  lines = []
  for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
    cells = [" ".join(cell.split()).replace("|", "\\|") for cell in row]
    if any(cells):
      lines.append(f"| {' | '.join(cells)} |")
  top = f"{lines[0]}\n|{'---|' * len(next(csv.reader([head], delimiter=separator)))}"
  count, number = len(lines) - 1, (len(lines) + 48) // 50
  edges = [1 + count * n // number for n in range(number + 1)]
  return ["\n".join([top, *lines[first:last]]) for first, last in pairwise(edges)]


@lru_cache(maxsize=64)
def _bytes(path: Path) -> bytes:
  return path.read_bytes()


def decoded(raw: bytes) -> Iterator[str]:
  """As UTF-8, else as it says, else by every encoding that fits, the usual ones first."""
  said = re.search(rb"coding[:=]\s*([-\w.]+)", raw[:400])
  for encoding in ("utf-8-sig", *([said[1].decode()] if said else []), "cp1252", "latin-1", *ENCODINGS):
    try:
      yield raw.decode(encoding)
    except (UnicodeDecodeError, LookupError):
      continue
    if encoding == "utf-8-sig":
      return


_BREAKS = dict.fromkeys(map(ord, "\r\x0b\x0c\x85\u2028\u2029"), "\n")
_UNSEEN = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xAD, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF])
_UNSEEN |= dict.fromkeys(n for n in [*range(32), *range(127, 160), 0xFFFE, 0xFFFF] if chr(n) not in "\t\n")
_UNSEEN |= dict.fromkeys(range(0xD800, 0xE000))


@lru_cache(maxsize=2048)
def cleaned(text: str) -> str:
  """NFC, one kind of line break, nothing unseen, no white space at line ends, at most two blank lines."""
  text = text.replace("\r\n", "\n").translate(_BREAKS).translate(_UNSEEN)
  lines: list[str] = []
  for line in map(str.rstrip, unicodedata.normalize("NFC", text).split("\n")):
    if line or any(lines[-2:]) or len(lines) < 2:
      lines.append(line)
  return "\n".join(lines).strip("\n")


# --- the data set


def twice(samples: Sequence[tuple[str, Record]]) -> Iterator[Problem]:
  """Samples that ask what another asks, be it with other options, or bear its name."""
  seen: dict[tuple[str, str], str] = {}
  for split, record in samples:
    for what in ("id", "question"):
      key = what, record[what].split("\n(A) ")[0]
      if key in seen:
        yield record["id"], "duplicate", f"has the {what} of {seen[key]}"
      seen.setdefault(key, f"{record['id']} ({split})")


def shared(samples: Sequence[tuple[str, Record]], library: Library) -> Iterator[Problem]:
  """Documents and tables of two splits: by the ids, paths and hashes of evidence, by titles where a file holds the
  excerpts."""
  by_name: dict[str, set[str]] = defaultdict(set)
  by_title: dict[str, dict[str, Excerpt]] = defaultdict(dict)
  for split, record in samples:
    for source in record["provenance"]["documents"]:
      by_name[source["id"]].add(split)
      if not source["path"].lower().endswith(IN_ROWS):
        by_name[source["sha256"]].add(split)
      if source["path"].lower().endswith(IN_PARTS):
        by_name[source["path"]].add(split)
    for excerpt in excerpts(record["context"]):
      by_title[_PART.sub("", excerpt.title)].setdefault(split, excerpt)
  for name, splits in by_name.items():
    if len(splits) > 1:
      yield name, "shared", f"is evidence in {' and '.join(sorted(splits))}"
  for title, by_split in by_title.items():
    if len(by_split) > 1 and (path := library.holds_all(map(_piece, by_split.values()))):
      yield title, "shared", f"({path}) has excerpts in {' and '.join(sorted(by_split))}"


_PART = re.compile(r", rows \d+ to \d+$")


def _piece(excerpt: Excerpt) -> str:
  """The longest paragraph, which stands in its document as it is: no heading or table's header said again, nothing of a
  conversation."""
  parts = re.split(r"\n\n|\n\[\.\.\.\]\n", excerpt.body)
  own = [part for part in parts if not re.match(r"\w+: .*\n\w+: (?:Agreed|No),", part)]
  return re.sub(r"\A\n*(?:#+ .*\n)?(?:.*\|.*\n[-:| ]+\n)?", "", max(own, key=len)).strip("\n")


# --- the report


def table(samples: Sequence[tuple[str, Record]], wrong: Sequence[dict[str, str]]) -> str:
  """A row per task and kind: how many samples pass, by aspect."""
  rows: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
  for (_, record), problems in zip(samples, wrong):
    for key in ((record["task"], record["provenance"]["kind"]), ("all", "")):
      rows[key]["checked"] += 1
      checked = ASPECTS if record["provenance"]["program"] else WRITTEN
      rows[key].update(a for a in checked if a not in problems and not (a in UNKNOWN and "unique" in problems))
  columns = ("checked", *ASPECTS)
  lines = ["| task | kind | " + " | ".join(columns) + " |", "|---|---" + "|---:" * len(columns) + "|"]
  for (task, kind), counts in sorted(rows.items(), key=lambda row: (row[0][0] == "all", row[0])):
    lines.append(f"| {task} | {kind} | " + " | ".join(str(counts[c]) for c in columns) + " |")
  return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
  parser.add_argument("--data", type=Path, required=True, help="folder of train, validation, test")
  parser.add_argument("--documents", required=True, help="folders of the documents, parted by commas")
  parser.add_argument("--show", type=int, default=20, help="how many wrong ones to name")
  given = parser.parse_args(arguments)
  library = Library([Path(root.strip()) for root in given.documents.split(",")])
  samples = list(records(given.data))
  wrong = [check(record, split, library) for split, record in tqdm(samples, desc="checking", dynamic_ncols=True)]
  problems = [(r["id"], aspect, why) for (_, r), w in zip(samples, wrong) for aspect, why in w.items()]
  problems += [*twice(samples), *shared(samples, library)]
  print(table(samples, wrong))
  if library.not_read:
    print(f"{library.not_read} spans of {' '.join(sorted(OTHER_FORMATS))} were not read again: only their hashes agree")
  for name, aspect, why in problems[: given.show]:
    print(f"{name}: {aspect}: {why}", file=sys.stderr)
  print(f"{len(samples)} samples checked, {len(problems)} problems")
  return 1 if problems else 0


if __name__ == "__main__":
  sys.exit(main())

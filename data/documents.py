"""What a document is, how its text is cleaned, and the rules that judge it and give it a domain: pure text in and out.

`reading` makes documents out of files, `folders` finds these, `deduplication` tells which documents repeat others.
What cannot be read or is not wanted comes back as `Rejected`, with the reason, and is counted.
"""

import importlib
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import ModuleType

# The report's five kinds of corpora (section 3).
DOMAINS = ("code", "academic", "professional", "general", "dialogue")

_LANGUAGES = """bash c cc clj cpp cs cu cuh cxx dart ex exs f90 go h hpp hs java jl js jsx kt lua m ml php pl proto py
  pyi pyx r rb rs scala sh sql swift ts tsx zig"""
CODE_SUFFIXES = frozenset(f".{name}" for name in _LANGUAGES.split())

TABLE_SUFFIXES = frozenset({".csv", ".tsv"})

# The rules' thresholds: ours, the report names none. Real documents of all domains stay well inside.
SHORTEST = 200  # characters
FEWEST_LETTERS = 0.3  # of the characters that are not white space; tables of figures have more
MOST_REPEATED = 0.5  # of the characters, in lines that stood before
LONGEST_WORD = 1000  # characters without white space: encoded data; scripts that have no spaces are not asked
LANGUAGE_SAMPLE = 3000  # characters, from the middle: the start is often names and numbers
LONGEST_TITLE = 120
DOMAIN_SAMPLE = 50_000  # characters that the rules for a domain look at
# A document is a dialogue or professional from this share of its lines on, or this many numbered headings.
TURNS, FACTS, SECTIONS = 0.1, 0.3, 5

# Zero-width space, word joiner, soft hyphen, marks of direction, byte order mark, surrogates, noncharacters, controls.
# Zero-width (non-)joiners stay: Persian, Hindi and emoji are spelt with them.
_UNSEEN = re.compile(
  "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\ufffe\uffff"
  "\ud800-\udfff]"
)
_BREAK = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_BLANK = re.compile(r"\n{4,}")
_NO_LETTERS = re.compile(r"[\W\d_]+")
_SPACELESS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")

# A turn of a dialogue, its speaker alone on the line or before the words: "HAMLET.", "Alice: hello", "[12:30] bob: hi",
# "Ham. To be".
_TURN = re.compile(
  r"\s*(?:\[[^\]]*\] *)?[<*]*"
  r"(?:([A-Za-z][\w.'’ -]{0,30}?)(?:[>*]*:[>*]*\s+\S|[.:]$)|([A-Z][A-Z'’ ]+$)|([A-Z][a-z]{1,8})\. [A-Z])"
)
_NUMBERED = re.compile(r"(?:#+ )?\d+(?:\.\d+)*\.? +[A-Z]\S*(?: \S+){0,9}$")
_FIELD = re.compile(r"[-*\s]*\**[A-Z][\w ,()/>&%-]{0,60}\**: *\S")
_TABLE = re.compile(r"\s*\|.*\|")
_ABSTRACT = re.compile(r"\babstract\b", re.IGNORECASE)
_REFERENCES = re.compile(r"^[^\w\n]*(?:\d+\.? )?(?:references|bibliography)\b", re.IGNORECASE | re.MULTILINE)
_HEADING = re.compile(r"#{1,3} +(.*?)[# ]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Source:
  """Where a document came from: bytes [start, end) of the file at `path` (relative to its root), and their SHA-256."""

  path: str
  start: int
  end: int
  sha256: str


@dataclass(frozen=True, slots=True)
class Document:
  """`text` is cleaned (NFC, one kind of line break); spans of characters are spans of it. `id`: unique in a corpus."""

  id: str
  domain: str
  title: str
  text: str
  source: Source


@dataclass(frozen=True, slots=True)
class Rejected:
  """A file or record that was left out: where it stands and why, in one word (`reason`) and in a line (`detail`)."""

  path: str
  reason: str
  detail: str = ""


def clean(text: str) -> str:
  """NFC, `\\n` alone, nothing that cannot be seen, no white space at line ends, at most two blank lines. Idempotent.

  Indentation stays, of the first line too.
  """
  text = _UNSEEN.sub("", _BREAK.sub("\n", text))
  if not text.isascii():
    text = unicodedata.normalize("NFC", text)
  text = "\n".join([line.rstrip() for line in text.split("\n")])
  return _BLANK.sub("\n\n\n", text).strip("\n")


def judge(document: Document, languages: Sequence[str] = ()) -> Rejected | None:
  """The first rule that the document breaks; `languages` are ISO 639-1 codes, none for any. Code speaks no language,
  nor does a table of separated values, which may be of figures alone."""
  text, code, table = document.text, document.domain == "code", is_separated(document.source.path)
  if len(text) < SHORTEST:
    return Rejected(document.id, "too_short", f"{len(text)} characters; at least {SHORTEST}")
  if not table and (share := letters(text)) < FEWEST_LETTERS:
    return Rejected(document.id, "not_text", f"{share:.0%} of it letters; at least {FEWEST_LETTERS:.0%}")
  if (share := repeated(text)) > MOST_REPEATED:
    return Rejected(document.id, "repeated_lines", f"{share:.0%} of it stood before; at most {MOST_REPEATED:.0%}")
  if not code and (length := longest_word(text)) > LONGEST_WORD:
    return Rejected(document.id, "long_lines", f"{length} characters without a space; at most {LONGEST_WORD}")
  if languages and not code and not table and (found := language(text)) not in languages:
    return Rejected(document.id, "language", f"{found}; wanted {', '.join(languages)}")
  return None


def is_separated(path: str) -> bool:
  """Whether a file is a table of separated values, which becomes several documents."""
  return PurePosixPath(path).suffix.lower() in TABLE_SUFFIXES


def letters(text: str) -> float:
  """Share of letters among what is not white space."""
  seen = sum(map(len, text.split()))
  return len(_NO_LETTERS.sub("", text)) / max(1, seen)


def repeated(text: str) -> float:
  """Share of the characters that stand in a line which came before."""
  known: set[str] = set()
  again = total = 0
  for line in map(str.strip, text.split("\n")):
    total += len(line)
    again += len(line) if line in known else 0
    known.add(line)
  return again / max(1, total)


def longest_word(text: str) -> int:
  return max(
    (len(word) for word in text.split() if len(word) <= LONGEST_WORD or not _SPACELESS.search(word)), default=0
  )


def language(text: str) -> str:
  """ISO 639-1 code of the language of its middle."""
  start = max(0, (len(text) - LANGUAGE_SAMPLE) // 2)
  return needed("py3langid").classify(text[start : start + LANGUAGE_SAMPLE])[0]


def check(languages: Sequence[str]) -> None:
  """Raises where a language is none that `language` could find: it would refuse every document."""
  known = sorted(code for code, _ in needed("py3langid").rank("")) if languages else []
  if unknown := [code for code in languages if code not in known]:
    raise ValueError(f"languages={unknown} are not among the known: {' '.join(known)}; none lets all pass")


def title_of(text: str, path: str) -> str:
  """A Markdown heading at the start, else the first line if it is short, else the file's stem."""
  first = text.lstrip()[: 10 * LONGEST_TITLE].partition("\n")[0].strip()
  file = PurePosixPath(path)
  if file.suffix.lower() in CODE_SUFFIXES:
    return file.name
  if heading := _HEADING.match(first):
    first = heading[1]
  return first if 0 < len(first) <= LONGEST_TITLE and letters(first) > FEWEST_LETTERS else file.stem


def domain_of(text: str, path: str) -> str:
  """The first folder of the path if it is named as a domain, else what the text looks like (rules of thumb, ours)."""
  file = PurePosixPath(path)
  if len(file.parts) > 1 and file.parts[0] in DOMAINS:
    return file.parts[0]
  if file.suffix.lower() in CODE_SUFFIXES:
    return "code"
  lines = [line for line in text[:DOMAIN_SAMPLE].split("\n") if line]
  if _ABSTRACT.search(text, 0, DOMAIN_SAMPLE) and _REFERENCES.search(text):
    return "academic"
  if turns(lines) > TURNS * len(lines):
    return "dialogue"
  facts = sum(1 for line in lines if _FIELD.match(line) or _TABLE.match(line))
  sections = sum(1 for line in lines if _NUMBERED.match(line))
  return "professional" if facts > FACTS * len(lines) or sections >= SECTIONS else "general"


def turns(lines: Sequence[str]) -> int:
  """Lines that a speaker starts who speaks at least three times, where there are two such speakers or more."""
  speakers = Counter(found[found.lastindex or 0] for line in lines if (found := _TURN.match(line)))
  often = [count for count in speakers.values() if count >= 3]
  return sum(often) if len(often) > 1 else 0


def needed(module: str) -> ModuleType:
  """A library of the extra `synthesis`: who only trains does without."""
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ImportError(f"{module} cannot be imported ({error}); pip install 'qwenlong_jax[synthesis]'") from error

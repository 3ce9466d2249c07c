"""What a context says, read anew: excerpts, facts, tables, words, speeches; of code, `reread_code.py`.

Part of `check_data.py`. It shares no code with the generator: what both get wrong alike would pass.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

GAP = "[...]"
Place = tuple[int, int]  # characters [start, end) of the context


class Unclear(Exception):
  """The context does not give exactly one answer."""


@dataclass(frozen=True)
class Excerpt:
  """`body` starts at character `start` of the context; its title line does not belong to it."""

  title: str
  start: int
  body: str

  @property
  def end(self) -> int:
    return self.start + len(self.body)

  @property
  def head(self) -> Place:
    """Where the title stands."""
    end = self.start - len(" ===\n")
    return end - len(self.title), end


@dataclass(frozen=True)
class Fact:
  """`sure`: whether the context shows all that could change it. `dated`: a number in a column of years."""

  value: str
  place: Place
  sure: bool = True
  dated: bool = False

  @property
  def quantity(self) -> "Quantity | None":
    return None if self.dated else quantity(self.value)

  @property
  def year(self) -> int | None:
    return int(self.value) if self.dated else year(self.value)


@dataclass(frozen=True)
class Entity:
  name: str
  facts: dict[str, Fact]


@dataclass(frozen=True)
class Quantity:
  number: float
  unit: str
  decimals: int | None = None


@dataclass(frozen=True)
class Answer:
  """`needs`: for each thing that the answer rests on, the places any one of which says it."""

  value: str | Quantity
  needs: list[list[Place]] = field(default_factory=list)


# --- the text


def excerpts(context: str) -> list[Excerpt]:
  heads = list(re.finditer(r"(?:\A|(?<=\n\n))=== (.+) ===\n", context))
  ends = [head.start() for head in heads[1:]] + [len(context)]
  return [Excerpt(head[1], head.end(), context[head.end() : end]) for head, end in zip(heads, ends)]


def _lines(text: str) -> Iterator[tuple[int, str]]:
  at = 0
  for line in text.splitlines(keepends=True):
    yield at, line.rstrip()
    at += len(line)


def document(excerpt: Excerpt) -> Entity:
  """The facts that lines `Key: value` state; what is stated twice is none."""
  heading = ""
  found: dict[str, list[Fact]] = {}
  for at, line in _lines(excerpt.body):
    if line == GAP:
      heading = ""
    elif marks := re.match(r"(#+) +", line):
      heading = line[marks.end() :].rstrip("# ") if len(marks[1]) > 1 else ""
    elif (key := re.match(r"(?:[-*] )?([^\W\d_][^:]*): (?=\S)", line)) is not None:
      place = excerpt.start + at + key.start(1), excerpt.start + at + len(line)
      name = f"{heading} > {key[1]}" if heading else key[1]
      found.setdefault(name, []).append(Fact(line[key.end() :].strip(), place))
  return Entity(excerpt.title, {name: facts[0] for name, facts in found.items() if len(facts) == 1})


def held(excerpt: Excerpt, words: Sequence[str], beside: str) -> list[list[Place]]:
  """Where each word stands in an excerpt."""
  patterns = [re.compile(rf"(?<!{beside}){re.escape(word)}(?!{beside})", re.IGNORECASE) for word in words]
  return [[(excerpt.start + m.start(), excerpt.start + m.end()) for m in p.finditer(excerpt.body)] for p in patterns]


def speeches(excerpt: Excerpt) -> Iterator[tuple[str, Place]]:
  """(speaker, place): behind `Name: `, or below a line `NAME.` behind an empty one, to the next empty line or `Name: `.

  Within a speech a short sentence on a line of its own is no label.
  """
  blank, speaker, start, end = True, "", 0, 0
  for at, line in [*_lines(excerpt.body), (len(excerpt.body), "")]:
    colon = re.match(r"([A-Z][\w'’]*(?: [A-Za-z][\w'’]*){0,3}):[ \t]+(?=\S)", line)
    alone = re.fullmatch(r"([A-Z][\w'’]*(?: [A-Za-z][\w'’]*){0,3})\.", line) if blank else None
    if speaker and (not line or colon):
      yield speaker, (excerpt.start + start, excerpt.start + end)
      speaker = ""
    if label := colon or alone:
      speaker, start = label[1], at + label.end() + (1 if alone else 0)
    end = at + len(line)
    blank = not line or line == GAP


# --- numbers and years

_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}


def quantity(text: str) -> Quantity | None:
  """What a value begins with: $, digits, a word of scale, a unit up to a bracket, semicolon or comma."""
  digits = re.match(r"(-?)(\$?)(-?)(\d{1,3}(?:,\d{3})+(?!\d)|\d+)(\.\d+)?", text)
  if digits is None:
    return None
  rest = re.split(r"[(;]|,(?=\s|$)", text[digits.end() :])[0]
  cut = text[digits.end() + len(rest) :].startswith("(") and not rest.endswith(" ")
  if cut or (rest and rest[0] not in " %"):
    return None
  number = float(digits[4].replace(",", "") + (digits[5] or ""))
  words = rest.split()
  if words and words[0] in _SCALES:
    number *= _SCALES[words.pop(0)]
  unit = " ".join(words)
  if (digits[2] and unit) or re.search(r"\d", unit):
    return None
  sign = -1 if digits[1] or digits[3] else 1
  return Quantity(sign * number, digits[2] or unit, len(digits[5] or ".") - 1)


def year(value: str) -> int | None:
  if len(value) > 80 or (quantity(value) is not None and not re.fullmatch(r"1\d{3}|20\d\d", value)):
    return None  # a bare year is both
  outside = re.sub(r"\([^()]*\)", "", value)
  found = {int(y) for y in re.findall(r"(?<!\w)(?:1\d|20)\d\d(?!\w)", outside)}
  return found.pop() if len(found) == 1 else None


def plain(value: str) -> str:
  """Without a bracket behind it and a final dot."""
  return re.sub(r"\s*\([^()]*\)$", "", value.strip()).strip().rstrip(".")


def named_first(value: str) -> str:
  first = re.split(r"[;(]|,(?!\d)", value)[0].strip()
  return re.sub(r"\s+\d[\d.,]*\s*(?:%|km)$", "", first).casefold()


# --- tables

_MISSING = {"", "na", "n/a", "nan", "null", "none"}


def rows(excerpt: Excerpt) -> list[Entity]:
  """Lines of cells below a line of names and a line of dashes, of as many cells as there are names."""
  found: list[Entity] = []
  names: list[str] = []
  above: list[tuple[str, int]] = []
  for at, line in _lines(excerpt.body):
    cells = _cells(line)
    dashes = bool(cells) and all(re.fullmatch(r":?-+:?", text) for text, _ in cells)
    if dashes and len(above) == len(cells):
      # The names of a second table were no row of the first.
      found = found[:-1] if names and len(names) == len(above) else found
      names = [text for text, _ in above]
    elif not cells:
      names = []
    elif len(cells) == len(names):
      found.append(Entity(cells[0][0], dict(_filled(names, cells, excerpt.start + at))))
    above = cells
  return found


def _cells(line: str) -> list[tuple[str, int]]:
  """(text, its first character) of each cell of a line that bars part; those at its ends part nothing."""
  marked = line.replace("\\|", "\0\0")
  if "|" not in marked:
    return []
  inner = marked.strip()
  inner = inner[1 if inner[0] == "|" else 0 : -1 if inner[-1] == "|" else None]
  at, found = marked.index(inner), []
  for part in inner.split("|"):
    text = part.strip()
    found.append((text.replace("\0\0", "|"), at + (part.index(text) if text else 0)))
    at += len(part) + 1
  return found


def _filled(names: Sequence[str], cells: Sequence[tuple[str, int]], start: int) -> Iterator[tuple[str, Fact]]:
  times = Counter(names)
  for name, (text, at) in zip(names, cells):
    if name and times[name] == 1 and text.strip("-–—.?").lower() not in _MISSING:
      dated = "year" in name.lower() and re.fullmatch(r"1\d{3}|20\d\d", text) is not None
      length = len(text) + text.count("|")  # which a backslash precedes
      yield f"column {name}", Fact(text, (start + at, start + at + length), dated=dated)

"""Tables in a document's text, written as Markdown does: their header, their rows, and what the rows state.

A table is a line of cells parted by bars, a line of dashes below it, and lines of as many cells below that. HTML's
tables and files of separated values arrive in this form. What has no header states nothing: nobody could say of what.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from qwenlong_jax.data.documents import Document
from qwenlong_jax.data.synthesis.outline import LONGEST, Entity, Fact, Section, fact, measure

NOUN = "table row"
LONGEST_LINE = LONGEST // 2  # characters of a header, which sections then never cut
LONGEST_CELL = 300

_DASHES = re.compile(r"^[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$", re.MULTILINE)
_BAR = re.compile(r"(?<!\\)\|")
_NOTHING = re.compile(r"[-–—.?]*|n/?a|nan|null|none", re.IGNORECASE)
_YEAR = re.compile(r"(?:1\d|20)\d\d")

Cell = tuple[int, int]  # characters [start, end) of the text


@dataclass(frozen=True, slots=True)
class Table:
  """`head`: the header's line and that of the dashes; `end` of the last line; cells of the header and of each row."""

  head: tuple[int, int]
  end: int
  columns: tuple[Cell, ...]
  rows: tuple[tuple[Cell, ...], ...]


def tables(text: str) -> Iterator[Table]:
  """In their order. Lines of more or fewer cells than the header stand in a table, and are none of its rows."""
  dashes = [found for found in _DASHES.finditer(text) if "|" in found[0]] if "|" in text else []
  for place, found in enumerate(dashes):
    above = text.rfind("\n", 0, max(found.start() - 1, 0)) + 1, max(found.start() - 1, 0)
    columns = _cells(text, *above)
    longest = max(above[1] - above[0], found.end() - found.start())
    if len(columns) != len(_cells(text, *found.span())) or longest > LONGEST_LINE:
      continue
    # The line above the next dashes is that table's header.
    last = text.rfind("\n", 0, dashes[place + 1].start() - 1) if place + 1 < len(dashes) else len(text)
    lines = list(_lines(text, found.end() + 1, last))
    rows = tuple(tuple(cells) for line in lines if len(cells := _cells(text, *line)) == len(columns))
    yield Table((above[0], found.end()), lines[-1][1] if lines else found.end(), tuple(columns), rows)


def _lines(text: str, start: int, last: int) -> Iterator[tuple[int, int]]:
  """The lines from `start` on that hold a bar, up to the first without one."""
  while start < last:
    end = text.find("\n", start)
    end = end if end >= 0 else len(text)
    if not _BAR.search(text, start, end):
      return
    yield start, end
    start = end + 1


def _cells(text: str, start: int, end: int) -> list[Cell]:
  """Where the cells of a line stand, without the white space around them; bars at its ends part nothing."""
  bars = [bar.start() for bar in _BAR.finditer(text, start, end)]
  if not bars:
    return []
  edges = list(zip([start, *(bar + 1 for bar in bars)], [*bars, end]))
  first, last = (0 if text[slice(*edges[0])].strip() else 1), len(edges) - (0 if text[slice(*edges[-1])].strip() else 1)
  return [_trimmed(text, *edge) for edge in edges[first:last]]


def _trimmed(text: str, start: int, end: int) -> Cell:
  cell = text[start:end]
  start += len(cell) - len(cell.lstrip())
  return start, start + len(cell.strip())


def headed(document: Document, sections: Sequence[Section]) -> list[Section]:
  """The sections, those that begin within a table with its header, as far as it stands before them."""
  text, found = document.text, list(sections)
  number = 0
  for table in tables(text) if document.domain != "code" else ():
    while number < len(found) and found[number].start <= table.head[0]:
      number += 1
    while number < len(found) and found[number].start < table.end:
      section = found[number]
      head = text[table.head[0] : min(table.head[1], section.start)].rstrip("\n")
      found[number] = replace(section, heading="\n".join(filter(None, [section.heading, head])))
      number += 1
  return found


def rows(document: Document) -> Iterator[Entity]:
  """The rows of a document's tables as entities: a fact for each cell that is filled in, where the column's name is its
  own. The key is the first column of names that are all different."""
  if document.domain in ("code", "dialogue"):
    return
  text = document.text
  for table in tables(text):
    names = [text[slice(*column)] for column in table.columns]
    times = Counter(names)
    attributes = [f"column {name}" if name and times[name] == 1 else "" for name in names]
    key = _key(text, table, attributes)
    for row in table.rows:
      stated = (_stated(text, attribute, cell) for attribute, cell in zip(attributes, row) if attribute)
      facts = {fact.attribute: fact for fact in stated if fact is not None}
      if facts:
        name = facts[key].value if key else ""
        yield Entity(name, NOUN, facts, (row[0][0], row[-1][1]), key=key)


def _key(text: str, table: Table, attributes: Sequence[str]) -> str:
  for attribute, column in zip(attributes, zip(*table.rows)):
    facts = [_stated(text, attribute, cell) for cell in column] if attribute else [None]
    texts = {fact.value.casefold() for fact in facts if fact is not None and _is_name(fact.value)}
    if len(texts) == len(facts):
      return attribute
  return ""


def _is_name(value: str) -> bool:
  """A number or a date is none."""
  return measure(value) is None and any(map(str.isalpha, value))


def _stated(text: str, attribute: str, cell: Cell) -> Fact | None:
  """What a cell says; nothing where a sign stands for what is missing. In a column of years a number is one."""
  value = text[slice(*cell)].replace("\\|", "|")
  if len(value) > LONGEST_CELL or _NOTHING.fullmatch(value):
    return None
  if "year" in attribute.casefold() and _YEAR.fullmatch(value):
    return Fact(attribute, value, *cell)
  return fact(attribute, value, *cell)

"""What a context says, read anew: excerpts, facts, classes, tables, speeches, and the answer to a sample's program.

Part of `check_data.py`. It shares no code with the generator: what both get wrong alike would pass.
"""

import keyword
import re
import sqlite3
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

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


# --- numbers and years

_SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}


def quantity(text: str) -> Quantity | None:
  """What a value begins with: $, digits, a word of scale, a unit up to a bracket, semicolon or comma."""
  digits = re.match(r"(-?)(\$?)(-?)(\d{1,3}(?:,\d{3})+(?!\d)|\d+)(\.\d+)?", text)
  if digits is None:
    return None
  rest = re.split(r"[(;]|,(?=\s|$)", text[digits.end() :])[0]
  if rest and rest[0] not in " %":
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
  if quantity(value) is not None or len(value) > 80:
    return None
  outside = re.sub(r"\([^()]*\)", "", value)
  found = {int(y) for y in re.findall(r"(?<!\w)(?:1\d|20)\d\d(?!\w)", outside)}
  return found.pop() if len(found) == 1 else None


def plain(value: str) -> str:
  """Without a bracket behind it and a final dot."""
  return re.sub(r"\s*\([^()]*\)$", "", value.strip()).strip().rstrip(".")


def named_first(value: str) -> str:
  first = re.split(r"[;,(]", value)[0].strip()
  return re.sub(r"\s+\d[\d.,]*\s*(?:%|[a-z]{1,3})?$", "", first).casefold()


# --- classes

_LONG = r"'''.*?(?:'''|\Z)|\"\"\".*?(?:\"\"\"|\Z)"
_TOKENS = re.compile(_LONG + r"|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"|#[^\n]*", re.DOTALL)
_LITERAL = re.compile(r"[ru]?(?:'([^'\n]*)'|\"([^\"\n]*)\"|(-?\d+|True|False|None))[ \t]*(?:#.*)?$", re.MULTILINE)


def _blanked(source: str) -> str:
  """Comments blank, strings of underscores: only code can match."""
  return _TOKENS.sub(lambda m: re.sub(r"[^\n]", " " if m[0][0] == "#" else "\x00", m[0]), source)


def classes(excerpt: Excerpt) -> Iterator[Entity]:
  """Those at the top of a module. The last method is sure only where the class's end is in sight."""
  for head in re.finditer(r"^class (\w+)", excerpt.body, re.MULTILINE):
    gap = excerpt.body.find(f"\n{GAP}\n", head.start())
    source = excerpt.body[head.start() : gap if gap >= 0 else len(excerpt.body)]
    code = _blanked(source)
    header = re.match(r"class \w+\s*(?:\((?P<bases>(?:[^()]|\([^()]*\))*)\))?\s*:", code)
    if header is None:
      continue
    # A line at the margin ends it, if it does not close a bracket.
    end = re.search(r"^[^\s)\]}\x00]", code[header.end() :], re.MULTILINE)
    whole = end is not None or gap < 0
    body = header.end(), header.end() + end.start() if end else len(code)
    at = excerpt.start + head.start()
    facts = {
      name: Fact(value, (at + s, at + e), whole or not name.startswith("last "))
      for name, (value, s, e) in _class_facts(source, code, header, body).items()
    }
    yield Entity(head[1], facts)


# --- functions

_HEAD = re.compile(r"^(?:@([\w.]+).*\n)?(?:async )?def (\w+)\s*\(", re.MULTILINE)


def functions(excerpt: Excerpt) -> Iterator[Entity]:
  """Those at the top of a module whose head is in sight; to a gap, or to the line at the margin that ends them."""
  for head in _HEAD.finditer(excerpt.body):
    gap = excerpt.body.find(f"\n{GAP}\n", head.start())
    source = excerpt.body[head.start(2) : gap if gap >= 0 else len(excerpt.body)]
    code = _blanked(source)
    close = _closing(code, code.index("("))
    colon = re.compile(r"\s*(?:->[^:]*)?:").match(code, close + 1)
    if colon is None:
      continue
    at = excerpt.start + head.start(2)
    facts = {name: Fact(value, (at, at + close)) for name, value in _parameters(source, code, close)}
    above = excerpt.body[: head.start()].rsplit("\n", 2)[-2:-1]
    if head[1] and not (above and re.match(r"[@)\]]", above[0])):
      facts["decorator"] = Fact(head[1], (excerpt.start + head.start(1), excerpt.start + head.end(1)))
    end = re.compile(r"^[^\s)\]}\x00]", re.MULTILINE).search(code, colon.end())
    for call in _CALL.finditer(code, colon.end(), end.start() if end else len(code)):
      if not keyword.iskeyword(call[1]):
        facts["first function that its body calls"] = Fact(call[1], (at + call.start(1), at + call.end(1)))
        break
    yield Entity(head[2], facts)


# What `def` or `class` introduces is no call, nor is what follows a dot behind a bracket.
_CALL = re.compile(r"(?<![\w.\x00])(?<!def )(?<!class )([A-Za-z_][\w.]*)\(")


def _closing(code: str, opening: int) -> int:
  depth = 0
  for at in range(opening, len(code)):
    depth += (code[at] in "([{") - (code[at] in ")]}")
    if not depth:
      return at
  return len(code)


def _parameters(source: str, code: str, close: int) -> Iterator[tuple[str, str]]:
  """Of a head without stars and slashes: how many, the first and the last, plain defaults."""
  start = code.index("(") + 1
  found, depth, at = [], 0, start
  for n in range(start, close + 1):
    depth += (code[n] in "([{") - (code[n] in ")]}") if n < len(code) else 0
    if n == close or (code[n] == "," and not depth):
      found += [(at, n)] if code[at:n].strip() else []
      at = n + 1
  names = [re.match(r"\s*(\w+)", code[slice(*span)]) for span in found]
  if not found or not all(names):
    return
  plain_names = [name[1] for name in names if name]
  yield "number of parameters", str(len(plain_names))
  yield "first parameter", plain_names[0]
  if len(plain_names) > 1:
    yield "last parameter", plain_names[-1]
  for name, (s, e) in zip(plain_names, found):
    default = re.compile(r"\s*\w+\s*(?::[^=]*)?=\s*").match(code, s, e)
    value = _LITERAL.match(source[:e].rstrip(), default.end()) if default else None
    if value:
      yield f"default of {name}", value[value.lastindex or 0]


def _class_facts(source: str, code: str, header: re.Match[str], body: Place) -> dict[str, tuple[str, int, int]]:
  found: dict[str, tuple[str, int, int]] = {}
  bases = [part.strip() for part in (header["bases"] or "").split(",") if part.strip() and "=" not in part]
  if len(bases) == 1 and re.fullmatch(r"[\w.]+", bases[0]):
    at = code.index(bases[0], header.start("bases"))
    found["base class"] = bases[0], at, at + len(bases[0])
  first = re.search(r"\n([ \t]+)[^\s]", code[slice(*body)])
  if first is None:
    return found
  inside = re.escape(first[1])
  methods = list(re.compile(rf"^{inside}(?:async )?def +(?!__)(\w+)", re.MULTILINE).finditer(code, *body))
  for which, method in (("first", methods[0]), ("last", methods[-1])) if methods else ():
    found[f"{which} method without double underscores"] = method[1], method.start(1), method.end(1)
  assigned = list(re.compile(rf"^{inside}(\w+) *= *(?!=)", re.MULTILINE).finditer(code, *body))
  times = Counter(match[1] for match in assigned)
  for match in assigned:
    value = _LITERAL.match(source, match.end())
    if value and times[match[1]] == 1:
      group = value.lastindex or 0
      found[f"attribute {match[1]}"] = value[group], match.start(1), value.end(group)
  return found


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


_ENTITIES: dict[str, Callable[[Excerpt], Iterable[Entity]]] = {
  "class": classes, "document": lambda excerpt: [document(excerpt)], "table row": rows,
  "top-level function": functions,
}  # fmt: skip


def entities(noun: str, found: Sequence[Excerpt]) -> list[Entity]:
  return [entity for excerpt in found for entity in _ENTITIES[noun](excerpt)]


def named(value: str, noun: str) -> str:
  """Whom a value names; code by the last part of a dotted name."""
  return value.rpartition(".")[2].casefold() if noun in ("class", "top-level function") else named_first(value)


def called(entity: Entity, key: str) -> str:
  """What others call it by: what it states for the key, if there is one, else its name."""
  if not key:
    return entity.name.casefold()
  return entity.facts[key].value.casefold() if key in entity.facts else ""


# --- programs


def satisfies(entity: Entity, constraint: Sequence[Any]) -> bool:
  attribute, test, values, unit = constraint
  fact = entity.facts.get(attribute)
  if fact is None:
    return False
  if test == "between":
    found = fact.quantity
    return found is not None and found.unit == unit and values[0] <= found.number < values[1]
  if test == "year":
    when = fact.year
    return when is not None and values[0] <= when < values[1]
  value, text = (" ".join(v.split()) for v in (fact.value, values[0]))
  return value == text if test == "is" else value.startswith(text)


def _one(found: Sequence[Entity], what: str) -> Entity:
  if len(found) != 1:
    raise Unclear(f"{len(found)} entities instead of one {what}: {', '.join(e.name for e in found[:4])}")
  return found[0]


def _described(every: Sequence[Entity], constraints: Sequence[Sequence[Any]]) -> tuple[Entity, list[list[Place]]]:
  fitting = [e for e in every if all(satisfies(e, c) for c in constraints)]
  entity = _one(fitting, f"to fit {constraints}")
  return entity, [[_fact(entity, c[0]).place] for c in constraints]


def _fact(entity: Entity, attribute: str) -> Fact:
  if attribute not in entity.facts:
    raise Unclear(f"{entity.name} states no single {attribute!r}")
  if not entity.facts[attribute].sure:
    raise Unclear(f"of {entity.name} the end is not shown, nor therefore its {attribute}")
  return entity.facts[attribute]


def _hop(program: dict[str, Any], found: Sequence[Excerpt], context: str) -> Answer:
  every = entities(program["noun"], found)
  start, needs = _described(every, program["start"])
  link = _fact(start, program["link"])
  name = named(link.value, program["noun"])
  key = program.get("key", "")
  end = _one([e for e in every if called(e, key) == name and e is not start], f"to be named {name!r}")
  answer = _fact(end, program["answer"])
  return Answer(plain(answer.value), [*needs, [link.place], *_naming(end, key), [answer.place]])


def _naming(entity: Entity, key: str) -> list[list[Place]]:
  return [[entity.facts[key].place]] if key else []


def _inverse(program: dict[str, Any], found: Sequence[Excerpt], context: str) -> Answer:
  every = entities(program["noun"], found)
  one, needs = _described(every, program["start"])
  naming = [e for e in every if e is not one and program["link"] in e.facts]
  key = program.get("key", "")
  naming = [e for e in naming if named(e.facts[program["link"]].value, program["noun"]) == called(one, key)]
  other = _one(naming, f"to name {called(one, key)!r} first")
  answer = _fact(other, program["answer"])
  link = _fact(other, program["link"])
  return Answer(plain(answer.value), [*needs, *_naming(one, key), [link.place], [answer.place]])


def _pair(program: dict[str, Any], found: Sequence[Excerpt]) -> tuple[list[Fact], list[list[Place]]]:
  every = entities(program["noun"], found)
  two = [_described(every, constraints) for constraints in program["of"]]
  if two[0][0] is two[1][0]:
    raise Unclear(f"both descriptions fit {two[0][0].name}")
  facts = [_fact(entity, program["attribute"]) for entity, _ in two]
  return facts, [*two[0][1], *two[1][1], *([fact.place] for fact in facts)]


def _years(program: dict[str, Any], found: Sequence[Excerpt], context: str) -> Answer:
  facts, needs = _pair(program, found)
  years = [fact.year for fact in facts]
  if years[0] is None or years[1] is None:
    raise Unclear(f"not one year in {facts[0].value!r} or {facts[1].value!r}")
  return Answer(Quantity(abs(years[0] - years[1]), ""), needs)


def _suppose(program: dict[str, Any], found: Sequence[Excerpt], context: str) -> Answer:
  facts, needs = _pair(program, found)
  one, other = (fact.quantity for fact in facts)
  if one is None or other is None or one.unit != other.unit:
    raise Unclear(f"{facts[0].value!r} and {facts[1].value!r} are no quantities of one unit")
  value = one.number * (100 + program["percent"]) / 100 - other.number
  return Answer(_rounded(value, program["decimals"], one.unit), needs)


def _rounded(value: float, decimals: int, unit: str) -> Quantity:
  if abs(abs(value) * 10**decimals % 1 - 0.5) < 1e-6:
    raise Unclear(f"{value!r} lies on a tie of {decimals} decimals")
  return Quantity(round(value, decimals), unit, decimals)


class _Median:
  def __init__(self) -> None:
    self.values: list[float] = []

  def step(self, value: float | None) -> None:
    if value is not None:
      self.values.append(value)

  def finalize(self) -> float | None:
    return statistics.median(self.values) if self.values else None


def _query(sql: str, rows: Sequence[tuple]) -> Any:
  with sqlite3.connect(":memory:") as database:
    database.create_aggregate("median", 1, _Median)  # type: ignore[arg-type]
    database.execute("CREATE TABLE facts (name TEXT, x REAL, y REAL, g TEXT)")
    database.executemany("INSERT INTO facts VALUES (?, ?, ?, ?)", rows)
    return (database.execute(sql).fetchone() or (None,))[0]


def _sql(program: dict[str, Any], found: Sequence[Excerpt], context: str) -> Answer:
  columns = program["columns"]
  stating = [e for e in entities(program["noun"], found) if all(a in e.facts for a in columns.values())]
  if len(stating) != program["rows"]:
    raise Unclear(f"{len(stating)} {program['noun']}s instead of {program['rows']} state {', '.join(columns.values())}")
  cells = {letter: [_cell(e, attribute, letter) for e in stating] for letter, attribute in columns.items()}
  units = {letter: {cell.unit for cell in column} for letter, column in cells.items() if letter != "g"}
  if any(len(unit) > 1 for unit in units.values()):
    raise Unclear(f"columns of several units: {units}")
  nothing = [None] * len(stating)
  numbers = [[cell.number for cell in cells[letter]] if letter in cells else nothing for letter in "xy"]
  rows = list(zip([e.name for e in stating], *numbers, cells.get("g", nothing)))
  values = [_query(program["sql"], order) for order in (rows, rows[::-1])]
  needs = [[e.facts[attribute].place] for e in stating for attribute in columns.values()]
  if None in values:
    raise Unclear("the query has no result")
  if program["decimals"] < 0:
    if values[0] != values[1]:
      raise Unclear(f"{values[0]!r} and {values[1]!r} tie")
    return Answer(values[0], needs)
  (unit,) = units["x"]
  wanted = "%" if "100.0 *" in program["sql"] else unit
  if wanted != program["unit"]:
    raise Unclear(f"the program says unit {program['unit']!r}, the facts {wanted!r}")
  return Answer(_rounded(values[0], program["decimals"], wanted), needs)


def _cell(entity: Entity, attribute: str, letter: str) -> Any:
  fact = entity.facts[attribute]
  if letter == "g":
    return fact.value
  if fact.quantity is None:
    raise Unclear(f"{entity.name} states {fact.value!r} for {attribute}, no quantity")
  return fact.quantity


# A word beside a digit or an underscore is one for some readers and not for others: both must come to the same.
_BESIDE = (r"[^\W\d_]", r"\w")


def held(excerpt: Excerpt, words: Sequence[str], beside: str) -> list[list[Place]]:
  """Where each word stands in an excerpt."""
  patterns = [re.compile(rf"(?<!{beside}){re.escape(word)}(?!{beside})", re.IGNORECASE) for word in words]
  return [[(excerpt.start + m.start(), excerpt.start + m.end()) for m in p.finditer(excerpt.body)] for p in patterns]


def _words(program: dict[str, Any], found: Sequence[Excerpt], context: str) -> Answer:
  loose = _held(program, found, _BESIDE[0])
  try:
    same = _held(program, found, _BESIDE[1]).value == loose.value
  except Unclear:
    same = False
  if not same:
    raise Unclear(f"it depends on whether {' and '.join(program['words'])} may be parts of names with _ or digits")
  return loose


def _held(program: dict[str, Any], found: Sequence[Excerpt], beside: str) -> Answer:
  places = [held(excerpt, program["words"], beside) for excerpt in found]
  both = [n for n, (one, other) in enumerate(places) if one and other]
  if len(both) != 1:
    raise Unclear(f"{len(both)} excerpts hold both of {program['words']}")
  needs = places[both[0]]
  if program["kind"] == "count":
    return Answer(Quantity(sum(1 for one, other in places if one and not other), ""), needs)
  if program["kind"] == "opening":
    return Answer(" ".join(opening(found[both[0]].body)), needs)
  if both[0] + 1 == len(found):
    raise Unclear("no excerpt follows")
  return Answer(found[both[0] + 1].title, needs)


def opening(body: str) -> list[str]:
  return re.findall(r"\w+", body.replace(GAP, ""))[:6]


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


def _needle(program: dict[str, Any], found: Sequence[Excerpt], context: str) -> Answer:
  held = [e for e in found if e.title == program["title"]]
  if len(held) != 1:
    raise Unclear(f"{len(held)} excerpts are titled {program['title']!r}")
  said = [place for name, place in speeches(held[0]) if name == program["speaker"]]
  if not program["number"] < len(said):
    raise Unclear(f"{program['speaker']} speaks {len(said)} times")
  start, end = said[program["number"]]
  text = context[start:end]
  start += len(text) - len(text.lstrip())  # the first line may be set in
  return Answer(text.strip(), [[(start, start + len(text.strip()))]])


def _agreement(program: dict[str, Any], found: Sequence[Excerpt], context: str) -> Answer:
  """The figures in the order in which they came into force. To go back twice is to undo two changes, or the first going
  back: both must come to the same."""
  as_change: list[str] = []
  as_undoing: list[str] = []
  left: list[str] = []
  needs: list[list[Place]] = []
  for match in re.finditer(r"^\w+: (.*)\n\w+: (.*)$", context, re.MULTILINE):
    if not re.search(rf"\b{re.escape(program['subject'])}\b", match[1]):
      continue
    needs.append([match.span()])
    if match[2].startswith("No,"):
      continue
    if "go back" in match[1]:
      left = left[:-1]
      as_change.append(as_change[-2] if len(as_change) > 1 else "none")
    else:
      left.append(re.findall(r"\d+", match[1].split(program["subject"])[1])[0])
      as_change.append(left[-1])
    as_undoing.append(left[-1] if left else "none")
  number = program["number"]
  if number >= len(as_change):
    raise Unclear(f"{len(as_change)} figures came into force")
  if as_change[number] != as_undoing[number]:
    raise Unclear(f"going back twice leads to {as_change[number]} or to {as_undoing[number]}")
  return Answer(as_change[number], needs)


def _triples(program: dict[str, Any], found: Sequence[Excerpt], context: str) -> Answer:
  """That the passages stand here, hold both ends and make a chain; what they say of them, the program's word is taken
  for."""
  needs, chain = [], [[program["anchor"]], *program["names"][1:]]
  for step, nears, fars in zip(program["steps"], chain, chain[1:]):
    quote, ends = step["quote"], [step["head"], step["tail"]]
    near, end = ends if step["forward"] else ends[::-1]
    places = [(e.start + m.start(), e.start + m.end()) for e in found for m in re.finditer(re.escape(quote), e.body)]
    if not places or any(" ".join(one.split()) not in " ".join(quote.split()) for one in ends):
      raise Unclear(f"no excerpt says {quote!r}, or that does not hold {near!r} and {end!r}")
    if near not in nears or end not in fars:
      raise Unclear(f"the path breaks off between {near!r} and {end!r}")
    needs.append(places)
  return Answer(end, needs)


_SOLVE: dict[str, Callable[[dict[str, Any], Sequence[Excerpt], str], Answer]] = {
  "hop": _hop, "inverse": _inverse, "years": _years, "suppose": _suppose, "sql": _sql, "opening": _words,
  "count": _words, "both": _words, "needle": _needle, "agreement": _agreement,
  "triples": _triples,
}  # fmt: skip


def solve(program: dict[str, Any], context: str, found: Sequence[Excerpt] | None = None) -> Answer:
  """The program's answer, by all excerpts of the context or by `found`."""
  if program["kind"] not in _SOLVE:
    raise ValueError(f"a program of kind {program['kind']!r} is unknown; known: {', '.join(_SOLVE)}")
  return _SOLVE[program["kind"]](program, excerpts(context) if found is None else found, context)


def agree(stated: str, value: str | Quantity) -> bool:
  """Whether a stated answer has the value: as text, or as quantities where it is nothing else; of a value that was
  computed the last decimal decides."""
  if isinstance(value, str):
    if " ".join(stated.split()) == " ".join(value.split()):
      return True
    if re.search(r"[(;]|,\s", stated + value):
      return False
  mine, right = (v if isinstance(v, Quantity) else quantity(v) for v in (stated, value))
  if mine is None or right is None or mine.unit != right.unit:
    return False
  decimals = value.decimals if isinstance(value, Quantity) and value.decimals is not None else 9
  return abs(mine.number - right.number) <= 10**-decimals / 100 + 1e-12 * abs(right.number)


def says(question: str, program: dict[str, Any]) -> list[str]:
  """What of the program the question does not say."""
  numbers = {float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*(?:\.\d+)?", question)}
  keys = ("link", "answer", "key", "attribute", "subject", "title", "speaker", "anchor")
  texts = [program[key] for key in keys if key in program]
  texts += [step["relation"] for step in program.get("steps", ())]
  texts += [*program.get("words", ()), *program.get("columns", {}).values(), *program.get("options", ())]
  wanted = [program["percent"]] if "percent" in program else []
  wanted += [program["decimals"]] if program.get("decimals", -1) >= 0 else []
  for attribute, test, values, unit in [*program.get("start", ()), *(c for of in program.get("of", ()) for c in of)]:
    texts += [attribute, unit, *(values if test in ("is", "begins") else ())]
    wanted += [values[0], values[1] - 1] if test == "year" else values if test == "between" else []
  wanted += [float(n) for n in re.findall(r"(?:[<>]=?|LIMIT|OFFSET) (-?[\d.]+)", program.get("sql", "")) if n != "1"]
  return [t for t in texts if t not in question] + [str(n) for n in wanted if abs(float(n)) not in numbers]

"""Programs over what entities state: descriptions, links, two of a kind, queries.

Part of `check_data.py`, which shares no code with the generator.
"""

import sqlite3
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from reread import Answer, Entity, Excerpt, Fact, Place, Quantity, Unclear, document, named_first, plain, rows
from reread_code import classes, functions

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


def hop(program: dict[str, Any], found: Sequence[Excerpt], context: str) -> Answer:
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


def inverse(program: dict[str, Any], found: Sequence[Excerpt], context: str) -> Answer:
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


def years(program: dict[str, Any], found: Sequence[Excerpt], context: str) -> Answer:
  facts, needs = _pair(program, found)
  years = [fact.year for fact in facts]
  if years[0] is None or years[1] is None:
    raise Unclear(f"not one year in {facts[0].value!r} or {facts[1].value!r}")
  return Answer(Quantity(abs(years[0] - years[1]), ""), needs)


def suppose(program: dict[str, Any], found: Sequence[Excerpt], context: str) -> Answer:
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


def sql(program: dict[str, Any], found: Sequence[Excerpt], context: str) -> Answer:
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

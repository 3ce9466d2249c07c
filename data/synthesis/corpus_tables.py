"""Corpus-level numerical questions (section 3 of the report): one table out of many documents, queried by SQL.

The columns are attributes that many documents state, the rows those documents whose statements are in the context; or
columns of tables of many documents, with the rows that are in the context. A template gives the question and the query
side by side; DuckDB's result is the ground truth.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qwenlong_jax.data.synthesis import sql as queries
from qwenlong_jax.data.synthesis.context import Asked, Context, Draft, places
from qwenlong_jax.data.synthesis.corpus import Corpus
from qwenlong_jax.data.synthesis.graph import Graph, clear, number_text, pick, rounded
from qwenlong_jax.data.synthesis.tables import NOUN

KINDS = ("statistics", "aggregation", "calculation", "ranking", "grouping")
FEWEST_ROWS, MOST_ROWS = 6, 40
_DRAWS = 12

# Per kind: (question, SQL over the table facts(name, x, y, g), decimals, unit: of x, "%" or none).
# {x}, {y}, {g} are names of attributes, {k} and {t} numbers; results are rounded as the question says.
_TEMPLATES: dict[str, tuple[tuple[str, str, int, str], ...]] = {
  "statistics": (
    ("what is the median of {x}", "SELECT median(x) FROM facts", 2, "x"),
    ("what is the mean of {x}", "SELECT avg(x) FROM facts", 2, "x"),
    ("what is the mean of {x} of those whose {y} is above {t}", "SELECT avg(x) FROM facts WHERE y > {t}", 2, "x"),
  ),
  "aggregation": (
    (
      "what is the sum of the {k} largest values of {x}",
      "SELECT sum(x) FROM (SELECT x FROM facts ORDER BY x DESC LIMIT {k})",
      2,
      "x",
    ),
    ("what is the sum of {x} of those whose {y} is above {t}", "SELECT sum(x) FROM facts WHERE y > {t}", 2, "x"),
  ),
  "calculation": (
    ("how much larger is the largest {x} than the smallest", "SELECT max(x) - min(x) FROM facts", 2, "x"),
    (
      "what percentage of the sum of {x} is the sum of its {k} largest values",
      "SELECT 100.0 * (SELECT sum(x) FROM (SELECT x FROM facts ORDER BY x DESC LIMIT {k})) / sum(x) FROM facts",
      1,
      "%",
    ),
    (
      "how much is the mean of {x} of those whose {y} is above {t}, minus its mean of the others (it may be negative)",
      "SELECT (SELECT avg(x) FROM facts WHERE y > {t}) - (SELECT avg(x) FROM facts WHERE y <= {t})",
      2,
      "x",
    ),
  ),
  "ranking": (
    (
      "which document states the value of {x} that is number {k} from the largest on, the largest being number 1",
      "SELECT name FROM facts ORDER BY x DESC LIMIT 1 OFFSET {k} - 1",
      -1,
      "",
    ),
    (
      "which document has the largest {x} among those whose {y} is below {t}",
      "SELECT name FROM facts WHERE y < {t} ORDER BY x DESC LIMIT 1",
      -1,
      "",
    ),
  ),
  "grouping": (
    (
      "grouped by their {g}, what is the sum of {x} of the group in which it is largest",
      "SELECT max(total) FROM (SELECT sum(x) AS total FROM facts GROUP BY g)",
      2,
      "x",
    ),
    (
      'of those whose {g} is "{v}", what is the mean of {x}',
      "SELECT avg(x) FROM facts WHERE g = '{v}'",
      2,
      "x",
    ),
  ),
}


def draft(rng: np.random.Generator, corpus: Corpus, kind: str, target: int) -> Draft | None:
  graph = Graph.of(corpus)
  for _ in range(_DRAWS):
    question, sql, decimals, unit = pick(rng, _TEMPLATES[kind])
    columns = _columns(rng, graph, question)
    # Rows of tables have no titles by which an answer could name them.
    if columns is None or (decimals < 0 and _noun(graph, columns) == NOUN):
      continue
    rows = _rows(rng, graph, columns, target)
    if len(rows) >= FEWEST_ROWS and len({graph.document(n) for n in rows}) > 1:
      return _draft(rng, graph, kind, (question, sql, decimals, unit), columns, rows)
  return None


def _columns(rng: np.random.Generator, graph: Graph, question: str) -> dict[str, str] | None:
  """Attributes for the letters of a template, of one entity at least: x, y numbers of one unit each, g of few different
  texts."""
  if not graph.numeric:
    return None
  columns = {"x": pick(rng, graph.numeric)}
  beside = graph.entity(pick(rng, graph.corpus.holders[columns["x"]])).facts
  for letter, among in (("y", graph.numeric), ("g", graph.grouping)):
    if f"{{{letter}}}" in question:
      able = [attribute for attribute in among if attribute in beside and attribute != columns["x"]]
      if not able:
        return None
      columns[letter] = pick(rng, able)
  return columns


def _noun(graph: Graph, columns: dict[str, str]) -> str:
  return graph.entity(graph.corpus.holders[columns["x"]][0]).noun


def _rows(rng: np.random.Generator, graph: Graph, columns: dict[str, str], target: int) -> list[int]:
  """Entities that state every column, as many as fit into most of the context, at random: one of a document, or of a
  table in it all rows of a section."""
  groups = _groups(graph, columns)
  units = {c: _unit(graph, columns[c]) for c in ("x", "y") if c in columns}
  fits = lambda n: all(  # noqa: E731
    graph.entity(n).facts[columns[c]].number is not None and graph.entity(n).facts[columns[c]].unit == unit
    for c, unit in units.items()
  )
  room, used = 0.75 * target, set[int]()
  chosen: list[int] = []
  for members in (groups[i] for i in rng.permutation(len(groups))):
    document = graph.document(members[0])
    if document in used or not all(map(fits, members)):
      continue
    needed = {s for n in members for a in columns.values() for s in graph.corpus.covering(*graph.evidence(n, a))}
    room -= sum(graph.corpus.tokens[document][s] for s in needed) + 20
    if room < 0 or len(chosen) + len(members) > MOST_ROWS:
      break
    used.add(document)
    chosen += members
  return chosen


def _groups(graph: Graph, columns: dict[str, str]) -> list[list[int]]:
  """The entities that state every column; rows of a section together, since a reader sees them all."""
  able = set.intersection(*(set(graph.corpus.holders[attribute]) for attribute in columns.values()))
  if _noun(graph, columns) != NOUN:
    return [[n] for n in sorted(able)]
  groups: dict[tuple[int, int], list[int]] = {}
  for n in sorted(able):
    document, start, end = graph.evidence(n, columns["x"])
    groups.setdefault((document, graph.corpus.covering(document, start, end)[0]), []).append(n)
  return list(groups.values())


def _unit(graph: Graph, attribute: str) -> str:
  facts = [graph.entity(n).facts[attribute] for n in graph.corpus.holders[attribute]]
  return next(fact.unit for fact in facts if fact.number is not None)


def _draft(
  rng: np.random.Generator,
  graph: Graph,
  kind: str,
  template: tuple[str, str, int, str],
  columns: dict[str, str],
  rows: Sequence[int],
) -> Draft | None:
  corpus = graph.corpus
  evidence = [graph.evidence(n, attribute) for n in rows for attribute in columns.values()]
  table = [
    (corpus.names[graph.document(n)], *(_cell(graph, n, columns.get(c), c) for c in ("x", "y", "g"))) for n in rows
  ]
  asked = _fill(rng, template, columns, table, _unit(graph, columns["x"]), _noun(graph, columns))
  if asked is None:
    return None
  chosen = set(rows)

  @functools.cache
  def said(document: int) -> set[int]:
    """The document's sections that state a column of others."""
    facts = ((n, a) for n in corpus.of(document) if n not in chosen for a in columns.values())
    stated = (graph.evidence(n, a) for n, a in facts if a in graph.entity(n).facts)
    return {section for place in stated for section in corpus.covering(*place)}

  def ask(context: Context) -> Asked | None:
    shown_rows = set.intersection(*({n for n, _ in places(context, a)} for a in columns.values()))
    return asked if shown_rows == chosen else None

  return Draft(
    kind=kind,
    evidence=evidence,
    ask=ask,
    query=asked.question,
    accept=lambda document, found: said(document).isdisjoint(found),
  )


def _cell(graph: Graph, number: int, attribute: str | None, column: str) -> Any:
  if attribute is None:
    return None
  fact = graph.entity(number).facts[attribute]
  return fact.value if column == "g" else fact.number


def _fill(
  rng: np.random.Generator,
  template: tuple[str, str, int, str],
  columns: dict[str, str],
  table: list[tuple],
  unit: str,
  noun: str,
) -> Asked | None:
  """The question with its numbers; None if its result is degenerate (empty, a tie, of one row, near a rounding tie)."""
  question, sql, decimals, of = template
  xs = sorted({row[1] for row in table})
  # Ties matter where the answer is a name.
  if len(xs) < (len(table) if decimals < 0 else FEWEST_ROWS) or max(map(abs, xs)) > 1e15:
    return None
  holes: dict[str, Any] = {"k": 2 + int(rng.random() * (len(table) - 3)), "t": 0.0, "v": ""}
  if "y" in columns:
    ys = sorted({row[2] for row in table})
    if len(ys) < FEWEST_ROWS:
      return None
    middle = holes["t"] = _between(ys[len(ys) // 3 : len(ys) - len(ys) // 3 + 1])
    if middle is None or min(sum(row[2] > middle for row in table), sum(row[2] < middle for row in table)) < 2:
      return None
  if "{v}" in question:
    several = sorted({row[3] for row in table if 2 <= sum(other[3] == row[3] for other in table) < len(table)})
    if not several:
      return None
    holes["v"] = pick(rng, several)
  decimals = min(decimals, 0) if decimals > 0 and max(map(abs, xs)) >= 1000 and of == "x" else decimals
  sql = sql.format(**{**holes, "t": repr(holes["t"])})
  value = _execute(sql, table)
  names = {letter: f'"{attribute}"' for letter, attribute in columns.items()}
  text = question.format(**names, k=holes["k"], v=holes["v"], t=number_text(holes["t"], ""))
  listed = " and a ".join(f'"{attribute}"' for attribute in columns.values())
  opening = f"Consider all {noun}s above that state a {listed}: "
  if decimals < 0:
    candidates = tuple(row[0] for row in table)
    program = _program(sql, noun, columns, table, decimals, "")
    return Asked(f"{opening}{text}?", value, candidates, program) if value else None
  if value is None or not clear(value, decimals):
    return None
  shown_unit = unit if of == "x" else "%"
  answer = rounded(value, decimals, shown_unit)
  stated = f" in {shown_unit}" if shown_unit not in ("", "%") else " in percent" if shown_unit == "%" else ""
  named = [number_text(row[1], unit) for row in table]
  if answer in named or round(value, decimals) == 0:
    return None
  rounding = f"Give it{stated}, as a plain number without words such as million, rounded to {decimals} decimals."
  program = _program(sql, noun, columns, table, decimals, shown_unit)
  candidates = tuple(dict.fromkeys((answer, *_shortcuts(table, decimals, shown_unit))))
  return Asked(f"{opening}{text}? {rounding}", answer, candidates, program)


def _between(values: Sequence[float]) -> float | None:
  """A short number between two neighbours in the middle."""
  middle = len(values) // 2
  low, high = values[middle - 1], values[middle]
  if low == high:
    return None
  for digits in range(-12, 8):
    candidate = round((low + high) / 2, digits)
    if low < candidate < high:
      return candidate
  return None


def _shortcuts(table: list[tuple], decimals: int, unit: str) -> tuple[str, ...]:
  """What comes out where the question was read in haste."""
  xs = [row[1] for row in table]
  values = (sum(xs), sum(xs) / len(xs), max(xs), min(xs), max(xs) - min(xs), xs[0], xs[-1])
  return tuple(dict.fromkeys(rounded(value, decimals, unit) for value in values if math.isfinite(value)))


def _program(
  sql: str, noun: str, columns: dict[str, str], table: list[tuple], decimals: int, unit: str
) -> dict[str, Any]:
  known = {"noun": noun, "columns": columns, "rows": len(table), "table": [list(row) for row in table]}
  return {"kind": "sql", "sql": sql, **known, "decimals": decimals, "unit": unit}


def facts(rows: Sequence[Sequence[Any]]) -> queries.Table:
  """The table of a program; a row is (name, x, y, g), None where the program has no such column."""
  columns = (("name", "VARCHAR"), ("x", "DOUBLE"), ("y", "DOUBLE"), ("g", "VARCHAR"))
  return queries.Table("facts", columns, tuple(map(tuple, rows)))


def _execute(sql: str, table: list[tuple]) -> Any:
  found = queries.run(sql, [facts(table)])
  if found.reason:
    raise ValueError(f"a template's query was refused ({found.reason}: {found.detail}): {sql}")
  return found.rows[0][0] if found.rows else None

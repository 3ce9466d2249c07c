"""Templates of questions about the table of corpus_numeric, each with its query, filled for one table.

A row is (name, x, y, g), None where there is no such column.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qwenlong_jax.data.synthesis import sql as queries
from qwenlong_jax.data.synthesis.context import Asked
from qwenlong_jax.data.synthesis.graph import clear, number_text, pick, rounded
from qwenlong_jax.data.synthesis.quantities import summable

FEWEST_ROWS = 6
Template = tuple[str, str, int, str]

# Per kind: (question, SQL over the table facts(name, x, y, g), decimals, unit: of x, "%" or none).
# {x}, {y}, {g} are names of attributes, {k} and {t} numbers; results are rounded as the question says.
TEMPLATES: dict[str, tuple[Template, ...]] = {
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
      "which document comes in place {k} when they are ranked by {x}, the largest first",
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


def fill(
  rng: np.random.Generator,
  template: Template,
  columns: dict[str, str],
  table: list[tuple],
  units: Mapping[str, str],
  noun: str,
) -> Asked | None:
  """The question with its numbers; None if its result is degenerate (empty, a tie, of one row, near a rounding tie).

  `units` of the columns that are numbers.
  """
  (question, sql, decimals, of), unit = template, units["x"]
  if "sum(" in sql and not summable(columns["x"], unit):
    return None
  xs = sorted({row[1] for row in table})
  # Ties matter where the answer is a name.
  if len(xs) < (len(table) if decimals < 0 else FEWEST_ROWS) or max(map(abs, xs)) > 1e15:
    return None
  holes = _holes(rng, question, columns, table)
  if holes is None:
    return None
  sql = sql.format(**{**holes, "t": repr(holes["t"])})
  value = _execute(sql, table)
  names = {letter: f'"{attribute}"' for letter, attribute in columns.items()}
  text = question.format(**names, k=holes["k"], v=holes["v"], t=number_text(holes["t"], units.get("y", "")))
  text = f"{opening(noun, columns)}: {text}?"
  if decimals < 0:
    program = _program(sql, noun, columns, table, decimals, "")
    return Asked(text, value, tuple(row[0] for row in table), program) if value else None
  whole = all(float(x).is_integer() for x in xs) and not ("avg" in sql or "median" in sql)
  if of == "x" and (whole or max(map(abs, xs)) >= 1000):
    decimals = min(decimals, 0)
  if value is None or not clear(value, decimals):
    return None
  shown_unit = unit if of == "x" else "%"
  answer = rounded(value, decimals, shown_unit)
  if answer in [number_text(row[1], unit) for row in table] or round(value, decimals) == 0:
    return None
  program = _program(sql, noun, columns, table, decimals, shown_unit)
  candidates = tuple(dict.fromkeys((answer, *_shortcuts(table, decimals, shown_unit))))
  return Asked(f"{text} {rounding(shown_unit, decimals)}", answer, candidates, program)


def _holes(
  rng: np.random.Generator, question: str, columns: dict[str, str], table: list[tuple]
) -> dict[str, Any] | None:
  """Numbers and a text to ask about, which leave several rows on either side."""
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
  return holes


def opening(noun: str, columns: Mapping[str, str]) -> str:
  """Of a question about all that state the columns."""
  listed = " and ".join(f'"{attribute}"' for attribute in columns.values())
  return f"Consider all {noun}{'es' if noun.endswith('s') else 's'} above that state {listed}"


def rounding(unit: str, decimals: int) -> str:
  """How a number is to be given."""
  stated = " in percent," if unit == "%" else f" in {unit}," if unit else ""
  places = f"{decimals} decimal{'' if decimals == 1 else 's'}"
  return f"Give it{stated} as a plain number without words such as million, rounded to {places}."


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

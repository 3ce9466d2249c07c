"""Queries that a model writes for questions about a table, and when two queries say the same (section 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from qwenlong_jax.data.prompts import Prompts
from qwenlong_jax.data.synthesis.graph import clear
from qwenlong_jax.data.synthesis.sql import Table, admit, run
from qwenlong_jax.llm import Completion, Sampling, ask, fenced
from qwenlong_jax.llm.structured import Parsed, Schema, ask_json

GREEDY = Sampling(temperature=0.0, top_p=None)
_SHOWN = 3  # rows


class Query(Schema):
  sql: str


@dataclass(frozen=True)
class Sheet:
  """A table and, by column, what a reader must know of it: the attribute's name, its unit."""

  table: Table
  meaning: Mapping[str, str]

  def described(self, most: int = _SHOWN) -> str:
    """Its columns and its first rows, for a model; without columns that nobody explains."""
    shown = [n for n, (name, _) in enumerate(self.table.columns) if name in self.meaning]
    lines = [f"{name} {kind}: {self.meaning[name]}" for name, kind in (self.table.columns[n] for n in shown)]
    rows = [", ".join(repr(row[n]) for n in shown) for row in self.table.rows[:most]]
    count = len(self.table.rows)
    return "\n".join([f"table {self.table.name}, {count} rows", *lines, "", "its first rows:", *rows])


@dataclass(frozen=True)
class Written:
  """A query as it was executed and its one value, or why there is none: `reason` in one word, `detail` in a line."""

  sql: str = ""
  value: Any = None
  reason: str = ""
  detail: str = ""
  model: str = ""


def write_queries(
  questions: Sequence[tuple[str, Sheet]], engine: Completion, prompts: Prompts, sampling: Sampling = GREEDY
) -> list[Written]:
  """For each (question, table) the query that the model writes, admitted and executed.

  Reasons: "reader_" and a failure of the reply or of its JSON; those of `evaluated`.
  """
  told = [prompts.query.fill(texts=fenced([sheet.described(), question], "text")) for question, sheet in questions]
  replies = ask_json(engine, [ask(prompt, sampling=sampling) for prompt in told], Query)
  return [_written(reply, sheet.table) for reply, (_, sheet) in zip(replies, questions)]


def evaluated(sql: str, table: Table) -> Written:
  """The one value of a query that nobody vouches for.

  Reasons: "query_" and one of `sql.run`; "query_shape": not one row with one column; "query_order": it depends on the
  order of the rows.
  """
  admitted = admit(sql, [table])
  if admitted.reason:
    return Written(sql, None, f"query_{admitted.reason}", admitted.detail)
  found = run(admitted.sql, [table])
  if found.reason:
    return Written(admitted.sql, None, f"query_{found.reason}", found.detail)
  if found.cell is None:
    return Written(admitted.sql, None, "query_shape", f"{len(found.rows)} rows, the first {found.rows[:1]}")
  turned = run(admitted.sql, [replace(table, rows=table.rows[::-1])])
  if _digits(found.cell) != _digits(turned.cell):
    return Written(admitted.sql, None, "query_order", f"{found.cell!r}, or {turned.cell!r} with the rows turned around")
  return Written(admitted.sql, found.cell)


def same(sql: str, other: str, table: Table, decimals: int) -> bool:
  """Whether two queries have the same result on a table and on variants of it, where chance would come to light.

  `decimals` as a question asks for them; negative: the results are texts.
  """
  first, *pairs = [(run(sql, [one]).cell, run(other, [one]).cell) for one in (table, *_variants(table))]
  return all(_agree(*pair, decimals) for pair in [first, *(pair for pair in pairs if _sound(pair[0], decimals))])


def _agree(value: Any, other: Any, decimals: int) -> bool:
  if decimals < 0:
    return value == other
  return is_number(value) and is_number(other) and round(float(value), decimals) == round(float(other), decimals)


def _written(reply: Parsed[Query], table: Table) -> Written:
  if reply.value is None:
    return Written(reason=f"reader_{reply.failure}", detail=reply.detail, model=reply.model)
  return replace(evaluated(reply.value.sql, table), model=reply.model)


def _digits(value: Any) -> Any:
  """Sums of the same numbers in another order differ in the last digits."""
  return f"{float(value):.9g}" if is_number(value) else value


def _variants(table: Table) -> list[Table]:
  """Every other row; the first two thirds; and for each column, its cells moved on by one row."""
  rows = table.rows
  columns = list(zip(*rows))
  moved = [
    tuple(zip(*columns[:n], column[1:] + column[:1], *columns[n + 1 :])) for n, column in enumerate(columns) if n
  ]
  return [replace(table, rows=kept) for kept in (rows[::2], rows[: 2 * len(rows) // 3], *moved)]


def _sound(value: Any, decimals: int) -> bool:
  """Whether a variant has a result that every correct computation rounds alike."""
  return isinstance(value, str) if decimals < 0 else is_number(value) and clear(float(value), decimals)


def is_number(value: Any) -> bool:
  return isinstance(value, int | float | Decimal) and not isinstance(value, bool)

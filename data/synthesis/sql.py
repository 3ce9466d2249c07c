"""Queries that nobody vouches for: read by a parser, admitted piece by piece, run in a closed database under limits.

What is executed is written anew from the tree of which every node was admitted: whatever a comment, an escape or a
dialect could hide from the parser is not there any more. The database knows the tables given and nothing else; it
reads no files, loads no extensions, and its settings are locked. Every refusal names what was refused.
"""

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

try:
  import duckdb
  import sqlglot
  from sqlglot import exp
  from sqlglot.optimizer.scope import Scope, traverse_scope
except ImportError as error:
  raise ImportError(f"queries need {error.name}; pip install 'qwenlong_jax[synthesis]'") from error

_SETTINGS: dict[str, Any] = {
  "threads": 1,
  "enable_external_access": False,
  "autoinstall_known_extensions": False,
  "autoload_known_extensions": False,
  "python_enable_replacements": False,  # a table named like a variable of the caller
  "memory_limit": "256MB",
  "temp_directory": "",
  "lock_configuration": True,
}
_LONGEST = 4000  # characters of a query
_LONGEST_CELL = 1000
_MOST_TABLES = 20  # named in one query: planning joins is not interrupted
_FUNCTIONS = {
  exp.Abs, exp.ArgMax, exp.ArgMin, exp.Avg, exp.Case, exp.Cast, exp.Ceil, exp.Coalesce, exp.Concat, exp.Corr,
  exp.Count, exp.DenseRank, exp.Exists, exp.Exp, exp.Extract, exp.FirstValue, exp.Floor, exp.Greatest,
  exp.If, exp.Lag, exp.LastValue, exp.Lead, exp.Least, exp.Length, exp.Ln, exp.Log, exp.Lower, exp.Max, exp.Median,
  exp.Min, exp.Mode, exp.NthValue, exp.Ntile, exp.Nullif, exp.PercentRank, exp.PercentileCont, exp.PercentileDisc,
  exp.Pow, exp.Quantile, exp.Rank, exp.Round, exp.RowNumber, exp.Sign, exp.Sqrt, exp.Stddev, exp.StddevPop,
  exp.StddevSamp, exp.StrPosition, exp.Substring, exp.Sum, exp.Trim, exp.TryCast, exp.Upper, exp.Variance,
  exp.VariancePop, exp.And, exp.Or, exp.CountIf,
}  # fmt: skip
_CONSTRUCTS = {
  exp.Add, exp.Alias, exp.Between, exp.Boolean, exp.CTE, exp.Column, exp.DPipe, exp.DataType, exp.DataTypeParam,
  exp.Distinct, exp.Div, exp.EQ, exp.Except, exp.Filter, exp.From, exp.GT, exp.GTE, exp.Group, exp.Having, exp.ILike,
  exp.Identifier, exp.In, exp.IntDiv, exp.Intersect, exp.Is, exp.Join, exp.LT, exp.LTE, exp.Like, exp.Limit,
  exp.Literal, exp.Mod, exp.Mul, exp.NEQ, exp.Neg, exp.Not, exp.Null, exp.Offset, exp.Order, exp.Ordered, exp.Paren,
  exp.Qualify, exp.Select, exp.Star, exp.Sub, exp.Subquery, exp.Table, exp.TableAlias, exp.Tuple, exp.Union, exp.Var,
  exp.Where, exp.Window, exp.WindowSpec, exp.With, exp.WithinGroup,
}  # fmt: skip
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Table:
  """`columns`: (name, "VARCHAR" or "DOUBLE") of each cell of a row; None is NULL."""

  name: str
  columns: tuple[tuple[str, str], ...]
  rows: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Limits:
  """Of one query: seconds on the wall clock, rows of its result."""

  seconds: float = 5.0
  rows: int = 100


@dataclass(frozen=True)
class Admitted:
  """The query as it will be executed, or why it will not be: `reason` in one word, `detail` names what was refused."""

  sql: str = ""
  reason: str = ""
  detail: str = ""


@dataclass(frozen=True)
class Result:
  """The rows, or why there are none."""

  rows: tuple[tuple[Any, ...], ...] = ()
  reason: str = ""
  detail: str = ""

  @property
  def cell(self) -> Any:
    """The one value of a result of one row and one column, else None."""
    return self.rows[0][0] if len(self.rows) == 1 and len(self.rows[0]) == 1 else None


def run(sql: str, tables: Sequence[Table], limits: Limits = Limits()) -> Result:
  """The result of one SELECT (also WITH, UNION) over `tables`.

  Reasons: those of `admit`, and "time", "memory", "rows", "cell" (one too long), "failed" (DuckDB's own error).
  """
  admitted = admit(sql, tables)
  if admitted.reason:
    return Result((), admitted.reason, admitted.detail)
  with _LOCK, _loaded(tables) as database:
    return _limited(database, admitted.sql, limits)


def admit(sql: str, tables: Sequence[Table]) -> Admitted:
  """The query, if it is one SELECT over these tables and their columns.

  Reasons: "long", "syntax", "statement", "construct", "function", "table", "column".
  """
  if len(sql) > _LONGEST:
    return Admitted(reason="long", detail=f"{len(sql)} characters, more than {_LONGEST}")
  try:
    found = [tree for tree in sqlglot.parse(sql, dialect="duckdb") if tree and not isinstance(tree, exp.Semicolon)]
    if len(found) != 1:
      return Admitted(reason="statement", detail=f"{len(found)} statements: {', '.join(map(_named, found)) or 'none'}")
    reason, detail = _refusal(found[0], tables)
    written = "" if reason else found[0].sql(dialect="duckdb", comments=False)
  except RecursionError:
    return Admitted(reason="syntax", detail="nested too deeply")
  except sqlglot.errors.SqlglotError as error:
    return Admitted(reason="syntax", detail=str(error).split("\n")[0][:200])
  return Admitted(written, reason, detail)


def _refusal(tree: exp.Expr, tables: Sequence[Table]) -> tuple[str, str]:
  if not isinstance(tree, exp.Select | exp.SetOperation):
    return "statement", _named(tree)
  for node in tree.walk():
    if type(node) not in _CONSTRUCTS and type(node) not in _FUNCTIONS:
      return "function" if isinstance(node, exp.Func) else "construct", _named(node)
  return _foreign_table(tree, tables) or _foreign_column(tree, tables) or ("", "")


def _foreign_table(tree: exp.Expr, tables: Sequence[Table]) -> tuple[str, str] | None:
  """A table is one of those given or, where it stands, a query that is named in a WITH."""
  given = {table.name.casefold() for table in tables}
  within = {
    id(node)
    for scope in traverse_scope(tree)
    for node, source in scope.selected_sources.values()
    if isinstance(source, Scope)
  }
  named = list(tree.find_all(exp.Table))
  for table in named:
    if id(table) not in within and (table.db or table.name.casefold() not in given):
      return "table", table.sql(dialect="duckdb")
  return ("table", f"{len(named)} tables, more than {_MOST_TABLES}") if len(named) > _MOST_TABLES else None


def _foreign_column(tree: exp.Expr, tables: Sequence[Table]) -> tuple[str, str] | None:
  """A column is one of those given or named in the query; `rowid`, which every table has, is neither."""
  given = {name.casefold() for table in tables for name, _ in table.columns}
  own = {alias.alias.casefold() for alias in tree.find_all(exp.Alias)} - {"rowid"}
  own |= {column.name.casefold() for alias in tree.find_all(exp.TableAlias) for column in alias.columns}
  for column in tree.find_all(exp.Column):
    if not isinstance(column.this, exp.Star) and column.name.casefold() not in given | own:
      return "column", column.sql(dialect="duckdb")
  return None


def _named(node: exp.Expr) -> str:
  if isinstance(node, exp.Anonymous | exp.Command):
    return str(node.this).lower()
  return node.sql_name().lower() if isinstance(node, exp.Func) else node.key.replace("_", " ")


@functools.cache
def _database() -> duckdb.DuckDBPyConnection:
  return duckdb.connect(":memory:", config=_SETTINGS)


def _quoted(name: str) -> str:
  return '"' + name.replace('"', '""') + '"'


@contextmanager
def _loaded(tables: Sequence[Table]) -> Iterator[duckdb.DuckDBPyConnection]:
  """The database with these tables, which cannot be written to."""
  database = _database()
  try:
    for table in tables:
      columns = ", ".join(f"{_quoted(name)} {kind}" for name, kind in table.columns)
      database.execute(f"CREATE TABLE {_quoted(table.name)} ({columns})")
      if table.rows:
        holes = ", ".join([f"({', '.join('?' * len(table.columns))})"] * len(table.rows))
        cells = [cell for row in table.rows for cell in row]
        database.execute(f"INSERT INTO {_quoted(table.name)} VALUES {holes}", cells)
    database.execute("BEGIN TRANSACTION READ ONLY")
    yield database
    database.execute("ROLLBACK")
  finally:
    for table in tables:
      database.execute(f"DROP TABLE IF EXISTS {_quoted(table.name)}")


def _limited(database: duckdb.DuckDBPyConnection, sql: str, limits: Limits) -> Result:
  clock = threading.Timer(limits.seconds, database.interrupt)
  clock.start()
  try:
    rows = database.execute(sql).fetchmany(limits.rows + 1)
  except duckdb.InterruptException:
    return Result((), "time", f"over {limits.seconds:g} seconds: {sql[:200]}")
  except duckdb.OutOfMemoryException:
    return Result((), "memory", f"over {_SETTINGS['memory_limit']}: {sql[:200]}")
  except duckdb.Error as error:
    return Result((), "failed", str(error).split("\n")[0][:200])
  finally:
    clock.cancel()
    clock.join()
  if len(rows) > limits.rows:
    return Result((), "rows", f"more than {limits.rows}")
  longest = max((len(cell) for row in rows for cell in row if isinstance(cell, str | bytes)), default=0)
  if longest > _LONGEST_CELL:
    return Result((), "cell", f"one of {longest} characters, more than {_LONGEST_CELL}")
  return Result(tuple(rows))

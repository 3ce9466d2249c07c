"""New questions about the tables of corpus_numeric: a model writes question and query, the query's result is the truth.

The context stays that of an example which a template asked about. The model is believed in nothing: the query is
admitted and executed, its unit is tried by scaling the column, degenerate results are dropped as the templates' are,
and a reader who sees the question alone must come to the same result by a query of its own.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlglot
from sqlglot import exp

from qwenlong_jax.data.prompts import Prompts
from qwenlong_jax.data.synthesis.graph import clear, rounded
from qwenlong_jax.data.synthesis.paraphrase import astray, reproduced, sheet, straight
from qwenlong_jax.data.synthesis.proposals import Rules, alike, wording
from qwenlong_jax.data.synthesis.quantities import summable
from qwenlong_jax.data.synthesis.sql import Table, run
from qwenlong_jax.data.synthesis.table_templates import facts, opening, rounding
from qwenlong_jax.data.synthesis.tables import NOUN
from qwenlong_jax.data.synthesis.text_to_sql import GREEDY, Written, evaluated, is_number, write_queries
from qwenlong_jax.data.verification_by_model import Checked, Rejection, with_check
from qwenlong_jax.llm import Completion, Sampling, ask, fenced
from qwenlong_jax.llm.structured import Schema, ask_json
from qwenlong_jax.types import Example

KIND = "posed"
GENERATOR = "corpus_numeric/posed/1"
_VARIED = Sampling(max_tokens=4096)
_RULES = Rules(longest_question=160, longest_answer=20)
_KNOWN = {"sum", "avg", "min", "max", "count", "median", "abs", "case", "if", "and", "or", "exists"}
_STRANGE = (exp.IntDiv, exp.Mod, exp.Qualify, exp.ILike, exp.WithinGroup)  # to SQLite, which checks the data
_FREE = ("0", "1", "1.0", "100.0")  # numbers that a question need not say, unless something is compared with them
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_QUOTED = re.compile(r'"[^"]*"')
_NUDGE = 1e-6


class Posed(Schema):
  question: str
  sql: str
  unit: str


class Posing(Schema):
  questions: tuple[Posed, ...]


@dataclass(frozen=True)
class _Draft:
  """An example with a new question in it, and who wrote that."""

  example: Example
  writer: str


def pose(
  examples: Sequence[Example],
  writer: Completion,
  reader: Completion,
  prompts: Prompts,
  count: int = 3,
  sampling: Sampling = _VARIED,
  reading: Sampling = GREEDY,
) -> Checked:
  """At most `count` new examples for each that has a table and a number for an answer.

  Reasons for a rejection: "writer_" and a failure of the reply or of its JSON (all of an example's), "too_many",
  "near_duplicate", those of `proposals.wording`, of `text_to_sql.evaluated` and `write_queries`, and "unit" (it does
  not scale as it says, or hangs on a value that lies on a limit), "name", "number" (not said), "sum" (of percentages,
  rates or averages), "portable" (SQLite would not know it, or divide otherwise), "degenerate", "other_result".
  """
  sound = [one for one in examples if one.task == "corpus_numeric" and _has_number(one) and reproduced(one)]
  told = [_told(one, prompts, count) for one in sound]
  replies = ask_json(writer, [ask(prompt, sampling=sampling) for prompt in told], Posing)
  drafts: list[_Draft] = []
  rejected: list[Rejection] = []
  for example, reply in zip(sound, replies):
    if reply.value is None:
      rejected.append(Rejection(example.id, f"writer_{reply.failure}", reply.detail))
      continue
    good, bad = _drafts(example, reply.value.questions, count, reply.model)
    drafts += good
    rejected += bad
  queries = write_queries([(one.example.question, sheet(one.example)) for one in drafts], reader, prompts, reading)
  outcomes = [_decided(*pair, prompts) for pair in zip(drafts, queries)]
  return Checked(
    kept=tuple(one for one in outcomes if isinstance(one, Example)),
    rejected=(*rejected, *(one for one in outcomes if isinstance(one, Rejection))),
  )


def _has_number(example: Example) -> bool:
  """Whether a number in the unit of x is the answer; of a percentage, x has a unit that nobody wrote down. A row is a
  document to the model: not so where a document's table has several."""
  program = example.provenance["program"]
  if program["kind"] != "sql" or program["noun"] == NOUN:
    return False
  return program["decimals"] >= 0 and "100.0 *" not in program["sql"]


def _told(example: Example, prompts: Prompts, count: int) -> str:
  described = sheet(example).described(most=example.provenance["program"]["rows"])
  return prompts.table_questions.fill(texts=fenced([described], "text"), count=count)


def _drafts(
  example: Example, posed: Sequence[Posed], count: int, model: str
) -> tuple[list[_Draft], list[Rejection]]:
  good: list[_Draft] = []
  earlier, bad = [_asked(example)], []
  for number, one in enumerate(posed):
    found = _filled(example, one)
    if isinstance(found, Example):
      twin = alike(_asked(found), earlier, _RULES.most_alike)
      if not twin and len(good) < count:
        good.append(_Draft(found, model))
        earlier.append(_asked(found))
        continue
      found = ("near_duplicate", twin) if twin else ("too_many", "")
    bad.append(Rejection(f"{example.id}/{number}", found[0], f"{found[1]} | {one.question} | {one.sql}"[:400]))
  return good, bad


def _asked(example: Example) -> str:
  """A question without what all about this context have in common: names, what is considered, how to round."""
  program = example.provenance["program"]
  text = example.question.removeprefix(opening(program["noun"], program["columns"]))
  return _QUOTED.sub(" ", text.removesuffix(rounding(program["unit"], program["decimals"])))


def _filled(example: Example, posed: Posed) -> Example | tuple[str, str]:
  """The example with this question, or why not."""
  program, table = example.provenance["program"], facts(example.provenance["program"]["table"])
  written = evaluated(posed.sql, table)
  if written.reason:
    return written.reason, written.detail
  if not is_number(written.value):
    return "query_shape", f"{written.value!r} is no number"
  tree, asked = sqlglot.parse_one(written.sql, dialect="duckdb"), straight(posed.question, example.question)
  if failed := _strange(tree) or _unsaid(asked, tree, program["columns"]) or _summed(tree, program):
    return failed
  sql, share = _divided(tree), posed.unit == "%"
  if posed.unit not in ("x", "%") or share != ("100.0 *" in sql) or not _scales(sql, table, share):
    return "unit", posed.unit
  unit = "%" if share else program["unit"]
  # As the templates round.
  xs = [float(row[1]) for row in table.rows]
  whole = all(x.is_integer() for x in (*xs, float(written.value))) and not tree.find(exp.Avg, exp.Median, exp.Div)
  decimals = 1 if share else 0 if whole or max(map(abs, xs)) >= 1000 else 2
  answer = rounded(float(written.value), decimals, unit)
  stated = [rounded(row[1], decimals, unit) for row in table.rows]
  if found := _degenerate(answer, float(written.value), decimals, stated):
    return "degenerate", found
  question = f"{opening(program['noun'], program['columns'])}. {asked} {rounding(unit, decimals)}"
  reason, detail = wording(question, answer, _RULES)
  if reason:
    return reason, detail
  return _renewed(example, question, answer, {"sql": sql, "decimals": decimals, "unit": unit})


def _strange(tree: exp.Expr) -> tuple[str, str] | None:
  for node in tree.walk():
    if isinstance(node, _STRANGE) or (isinstance(node, exp.Func) and node.sql_name().lower() not in _KNOWN):
      return "portable", node.sql(dialect="duckdb")[:200]
  return None


def _divided(tree: exp.Expr) -> str:
  """The query with every division one of real numbers, in any dialect."""
  for node in list(tree.find_all(exp.Div)):
    node.set("this", exp.Mul(this=exp.Literal.number("1.0"), expression=exp.paren(node.this)))
  return tree.sql(dialect="duckdb")


def _unsaid(question: str, tree: exp.Expr, columns: dict[str, str]) -> tuple[str, str] | None:
  """What of the query the question does not say."""
  said = {float(number.replace(",", "")) for number in _NUMBER.findall(_QUOTED.sub(" ", question))}
  used = {column.name.casefold() for column in tree.find_all(exp.Column)}
  texts = [attribute for letter, attribute in columns.items() if letter in used]
  for literal in tree.find_all(exp.Literal):
    free = literal.this in _FREE and not isinstance(literal.parent, exp.Predicate)
    if literal.is_string:
      texts.append(literal.this)
    elif not free and float(literal.this) not in said:
      return "number", literal.this
  missing = [text for text in texts if f'"{text}"' not in question]
  return ("name", ", ".join(missing)) if missing else None


def _summed(tree: exp.Expr, program: dict[str, Any]) -> tuple[str, str] | None:
  """A sum over x that means nothing."""
  if summable(program["columns"]["x"], program["unit"]):
    return None
  for one in tree.find_all(exp.Sum):
    if any(column.name.casefold() == "x" for column in one.find_all(exp.Column)):
      return "sum", one.sql(dialect="duckdb")
  return None


def _scales(sql: str, table: Table, share: bool) -> bool:
  """Whether the result grows as x does (a share: not at all), and stays where the values of y move by very little."""
  grown = replace(table, rows=tuple((name, 10 * x, y, g) for name, x, y, g in table.rows))
  pairs = [(grown, 1 if share else 10)]
  for factor in (1 - _NUDGE, 1 + _NUDGE):
    moved = tuple((name, x, y if y is None else factor * y, g) for name, x, y, g in table.rows)
    pairs.append((replace(table, rows=moved), 1))
  value = float(run(sql, [table]).cell)
  found = [(run(sql, [other]).cell, times * value) for other, times in pairs]
  return all(cell is not None and math.isclose(float(cell), wanted, rel_tol=1e-9) for cell, wanted in found)


def _degenerate(answer: str, value: float, decimals: int, stated: Sequence[str]) -> str:
  if not clear(value, decimals):
    return f"{value} lies on a tie"
  if round(value, decimals) == 0:
    return f"{value} is nothing"
  return f"{answer} is what one document states" if answer in stated else ""


def _renewed(example: Example, question: str, answer: str, program: dict[str, Any]) -> Example:
  """Another example of the same context."""
  origin = {name: value for name, value in example.provenance.items() if name != "checks"}
  candidates = dict.fromkeys([answer, example.answer, *origin.get("candidates", ())])
  new = {"generator": GENERATOR, "kind": KIND, "candidates": list(candidates), "program": origin["program"] | program}
  identity = hashlib.sha256(f"{question}\n{answer}\n{example.context}".encode()).hexdigest()[:16]
  ident = f"{example.id.rpartition('/')[0]}/{identity}"
  return replace(example, id=ident, question=question, answer=answer, reasoning="", provenance=origin | new)


def _decided(draft: _Draft, query: Written, prompts: Prompts) -> Example | Rejection:
  example = draft.example
  if lost := astray(example, example.question, query):
    return lost
  record = {
    "sql": query.sql,
    "models": {"writer": draft.writer, "reader": query.model},
    "prompts": [prompts.table_questions.version, prompts.query.version],
  }
  known = replace(example, provenance=example.provenance | {"model": draft.writer})
  return with_check(known, "posed", record)

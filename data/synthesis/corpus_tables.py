"""Corpus-level numerical questions (section 3 of the report): one table out of many documents, queried by SQL.

The columns are attributes that many documents state, the rows those documents whose statements are in the context; or
columns of tables of many documents, with the rows that are in the context. A template (`table_templates`) gives the
question and the query side by side; DuckDB's result is the ground truth.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from qwenlong_jax.data.synthesis.context import Asked, Context, Draft, places
from qwenlong_jax.data.synthesis.corpus import Corpus
from qwenlong_jax.data.synthesis.graph import Graph, pick
from qwenlong_jax.data.synthesis.table_templates import FEWEST_ROWS, TEMPLATES, Template, fill
from qwenlong_jax.data.synthesis.tables import NOUN

KINDS = ("statistics", "aggregation", "calculation", "ranking", "grouping")
MOST_ROWS = 40
_DRAWS = 12


def draft(rng: np.random.Generator, corpus: Corpus, kind: str, target: int) -> Draft | None:
  graph = Graph.of(corpus)
  for _ in range(_DRAWS):
    template = pick(rng, TEMPLATES[kind])
    question, _, decimals, _ = template
    columns = _columns(rng, graph, question)
    # Rows of tables have no titles by which an answer could name them.
    if columns is None or (decimals < 0 and _noun(graph, columns) == NOUN):
      continue
    rows = _rows(rng, graph, columns, target)
    if len(rows) >= FEWEST_ROWS and len({graph.document(n) for n in rows}) > 1:
      return _draft(rng, graph, kind, template, columns, rows)
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
  template: Template,
  columns: dict[str, str],
  rows: Sequence[int],
) -> Draft | None:
  corpus = graph.corpus
  evidence = [graph.evidence(n, attribute) for n in rows for attribute in columns.values()]
  table = [
    (corpus.names[graph.document(n)], *(_cell(graph, n, columns.get(c), c) for c in ("x", "y", "g"))) for n in rows
  ]
  units = {column: _unit(graph, columns[column]) for column in columns if column != "g"}
  asked = fill(rng, template, columns, table, units, _noun(graph, columns))
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

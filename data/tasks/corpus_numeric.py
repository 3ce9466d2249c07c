"""Corpus-level numerical reasoning: a table whose rows lie in different documents, and a computed answer.

    SA: Peru 32                    how many in SA?
                                   -> SA: Peru 32 (1)
    AF: Chad 15                       SA: Chile 19 (2)
                                   -> 2
    SA: Chile 19

A row is continent, country and millions of people. Four operations: count, maximum, sum and difference. The truth is
computed from the rows as they are shown.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from qwenlong_jax.data.sources import Facts, Row
from qwenlong_jax.data.tasks.context import Costs, Draft, Page, Sheets, fill, lines_per_page, pick, shuffled

OPERATIONS = ("count", "count", "most", "sum", "difference")
MATCHES = (1, 2, 2, 3, 4)
SMALL = 20
_MOST_ROWS = 24


def draft(rng: np.random.Generator, facts: Facts, costs: Costs, budget: int) -> Draft | None:
  operation = pick(rng, OPERATIONS)
  asked = _asked(rng, facts, operation)
  if asked is None:
    return None
  continent = asked[0].continent if operation in ("count", "most") else ""
  size = lines_per_page(budget, costs.line(asked[0].text))
  sheets = Sheets(rng, facts, 1)
  pages = [_page(sheets, row, size, evidence=True) for row in asked]
  others = [row for row in facts.rows if row.continent != continent and row not in asked]
  rivals = shuffled(rng, others)[: _MOST_ROWS - len(asked)]
  shown = [page.lines[page.evidence[0]] for page in pages]
  order = shuffled(rng, range(len(asked)))
  asked, pages = [asked[k] for k in order], [pages[k] for k in order]
  question, reasoning, answer = _solved(operation, asked, continent)
  room = budget - costs.line(question) - sum(map(costs.page, pages))
  distractors: list[Page] = []
  room = fill(distractors, (_page(sheets, row, size) for row in rivals), room, costs)
  if len(distractors) < 2:
    return None
  sheets.size = size
  fill(distractors, sheets.distractors(()), room, costs)
  return Draft(
    pages=_spread(rng, pages, shuffled(rng, distractors)),
    question=question,
    answer=answer,
    reasoning=reasoning,
    key=f"\n{continent}: " if continent else f": {asked[0].name} ",
    used=shown,
    times=len(asked) if continent else 1,
  )


def _asked(rng: np.random.Generator, facts: Facts, operation: str) -> list[Row] | None:
  """The rows that the answer is computed from, or None if this draw offers none."""
  if operation in ("sum", "difference"):
    small = [row for row in facts.rows if row.millions <= SMALL]
    pair = shuffled(rng, small)[:2]
    distinct = len(pair) == 2 and pair[0].millions != pair[1].millions
    return pair if distinct else None
  continent = pick(rng, facts.rows).continent
  wanted = pick(rng, MATCHES)
  rows = shuffled(rng, [row for row in facts.rows if row.continent == continent])[:wanted]
  most = sorted(row.millions for row in rows)
  enough = len(rows) == wanted and (operation == "count" or (wanted > 1 and most[-1] > most[-2]))
  return rows if enough else None


def _solved(operation: str, rows: Sequence[Row], continent: str) -> tuple[str, str, str]:
  """(question, reasoning, answer), the rows taken in the order of the context."""
  if operation == "count":
    listed = [f"{row.text} ({number})" for number, row in enumerate(rows, start=1)]
    return f"how many in {continent}?", "\n".join(listed), str(len(rows))
  if operation == "most":
    return f"most people in {continent}?", "\n".join(r.text for r in rows), max(rows, key=lambda r: r.millions).name
  sign = "+" if operation == "sum" else "-"
  first, second = rows if operation == "sum" else sorted(rows, key=lambda row: -row.millions)
  total = first.millions + second.millions if operation == "sum" else first.millions - second.millions
  steps = [f"in {first.name} {first.millions}", f"in {second.name} {second.millions}"]
  steps.append(f"{first.millions} {sign} {second.millions} = {total}")
  return f"millions in {first.name} {sign} in {second.name}?", "\n".join(steps), str(total)


def _page(sheets: Sheets, row: Row, size: int, evidence: bool = False) -> Page:
  """The row, in longer contexts among other facts about its country."""
  lines = [row.text]
  place = sheets.facts.places[row.name]
  for attribute in shuffled(sheets.rng, place.facts)[: size - 1]:
    fact = place.facts[attribute][0]
    sheets.used.add(fact.key)
    lines.insert(int(sheets.rng.random() * (len(lines) + 1)), fact.text)
  return Page(f"geonames/{row.name}", lines, (lines.index(row.text),) if evidence else ())


def _spread(rng: np.random.Generator, ordered: list[Page], others: list[Page]) -> list[Page]:
  """Both lists mixed; `ordered` keeps its order, the one in which the reasoning walks through it."""
  total = len(ordered) + len(others)
  mine = set(shuffled(rng, range(total))[: len(ordered)])
  ours: Iterator[Page] = iter(ordered)
  theirs: Iterator[Page] = iter(others)
  return [next(ours) if number in mine else next(theirs) for number in range(total)]

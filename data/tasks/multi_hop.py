"""Document multi-hop reasoning: a value is found in one document and looked up in another.

    country of Quito: Ecuador      currency of the country of Quito?
                                   -> country of Quito: Ecuador
    currency of Ecuador: USD          currency of Ecuador: USD
    ...                            -> USD

Neither document answers alone, and others of the same two attributes stand beside them.
"""

import numpy as np

from qwenlong_jax.data.sources import Facts
from qwenlong_jax.data.tasks.context import Costs, Draft, Page, Sheets, fact_about, fill, lines_per_page, pick, shuffled

# (attribute of the place asked about, attribute of the value found there). City and neighbour have many values each.
# Not population: 32M and 32 million are one truth, and a rule that compares texts would call them two.
HOPS = (
  ("country", "capital"), ("country", "currency"), ("country", "continent"), ("country", "phone"),
  ("country", "language"), ("country", "neighbour"), ("country", "city"), ("country", "city"),
  ("neighbour", "capital"), ("neighbour", "city"), ("capital", "latitude"),
  ("capital", "longitude"), ("city", "latitude"), ("city", "longitude"),
)  # fmt: skip


def draft(rng: np.random.Generator, facts: Facts, costs: Costs, budget: int) -> Draft | None:
  first_attribute, second_attribute = pick(rng, HOPS)
  sheets = Sheets(rng, facts, 1)
  first = sheets.fact(first_attribute)
  bridge = facts.places.get(first.value) if first else None
  if first is None or bridge is None or second_attribute not in bridge.facts:
    return None
  second = fact_about(rng, bridge, second_attribute)
  question = f"{second_attribute} of the {first.key}?"
  if second.value in question or second.value in first.text:
    return None
  sheets.size = lines_per_page(budget, costs.line(first.text))
  sheets.used.update((first.key, second.key))
  pages = [sheets.page(first, evidence=True), sheets.page(second, evidence=True)]
  room = budget - costs.line(question) - sum(map(costs.page, pages))
  rival = sheets.fact(second_attribute, lambda fact: fact.value != second.value)
  near: list[Page] = []
  room = fill(near, [sheets.page(rival)] if rival else [], room, costs)
  if not near:
    return None
  pages += near
  fill(pages, sheets.distractors((first_attribute, second_attribute)), room, costs)
  return Draft(
    pages=shuffled(rng, pages),
    question=question,
    answer=second.value,
    reasoning=f"{first.text}\n{second.text}",
    key=f"{second.key}:",
    used=[first.text, second.text],
  )

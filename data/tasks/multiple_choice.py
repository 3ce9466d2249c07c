"""Multiple choice: which of four values is the one that the documents give for a place?

    capital of Peru: Lima          capital of Peru? Quito: A, Lima: B, Accra: C, Oslo: D
                                   -> capital of Peru: Lima: B
    capital of Chad: N'Djamena     -> B
    ...

The wrong options are values of the same attribute, most of them in the context beside another place. An option comes
before its letter and a colon between them, so that the letter is looked up from the value as the value is from the key;
and behind a space, as values stand in the facts, because a word after a space and one at the start of a line are
different tokens.
"""

import numpy as np

from qwenlong_jax.data.sources import Fact, Facts
from qwenlong_jax.data.tasks.context import Costs, Draft, Page, Sheets, fill, lines_per_page, pick, shuffled

LETTERS = "ABCD"
# Often about the many cities, so that there is more to look up than a small model can learn by heart.
ATTRIBUTES = (
  "country", "country", "latitude", "population", "city", "city", "capital", "currency", "neighbour", "language",
  "phone",
)  # fmt: skip


def draft(rng: np.random.Generator, facts: Facts, costs: Costs, budget: int) -> Draft | None:
  attribute = pick(rng, ATTRIBUTES)
  sheets = Sheets(rng, facts, 1)
  target = sheets.fact(attribute)
  if target is None:
    return None
  sheets.size = lines_per_page(budget, costs.line(target.text))
  pages = [sheets.page(target, evidence=True)]
  taken = {fact.value for fact in facts.places[target.subject].facts[attribute]}  # All true, if of several neighbours.
  others: list[Fact] = []
  while len(others) < len(LETTERS) - 1:
    other = sheets.fact(attribute, lambda fact: fact.value not in taken)
    if other is None:
      return None
    taken.add(other.value)
    sheets.used.add(other.key)
    others.append(other)
  options = shuffled(rng, [target.value, *(other.value for other in others)])
  letter = LETTERS[options.index(target.value)]
  question = f"{target.key}? " + ", ".join(f"{value}: {name}" for value, name in zip(options, LETTERS))
  room = budget - costs.line(question) - costs.page(pages[0])
  near: list[Page] = []
  room = fill(near, (sheets.page(other) for other in others), room, costs)
  if not near:
    return None
  pages += near
  fill(pages, sheets.distractors((attribute,)), room, costs)
  return Draft(
    pages=shuffled(rng, pages),
    question=question,
    answer=letter,
    reasoning=f"{target.text}: {letter}",
    key=f"{target.key}:",
    used=[target.text],
  )

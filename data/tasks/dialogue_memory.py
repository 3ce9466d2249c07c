"""Dialogue memory: what somebody said last, many turns and sessions ago.

    Ana: I visit Lima              Ana: I visit what, at last?
    Ben: I study Chad              -> Ana: I visit Quito
                                   -> Quito
    Ana: I visit Quito
    ...

Plans change: earlier statements of the same person stay in the dialogue and are wrong. The people are invented.
"""

import numpy as np

from qwenlong_jax.data.sources import Facts
from qwenlong_jax.data.tasks.context import Costs, Draft, Page, lines_per_page, pick, shuffled

PEOPLE = (
  "Ada", "Ali", "Amy", "Ana", "Ben", "Bob", "Dan", "Eli", "Eva", "Fay", "Gus", "Hal", "Ian", "Ida", "Jan", "Jim", "Joe",
  "Kai", "Kim", "Lea", "Leo", "Lin", "Liz", "Max", "Mia", "Ned", "Nia", "Noa", "Oli", "Pam", "Ray", "Rob", "Ron", "Roy",
  "Sam", "Sue", "Tim", "Tom", "Uma", "Val", "Viv", "Zoe",
)  # fmt: skip
VERBS = ("visit", "study", "leave", "pay in", "speak")
STATEMENTS = (1, 1, 2, 2, 3)


def draft(rng: np.random.Generator, facts: Facts, costs: Costs, budget: int) -> Draft | None:
  who, verb = pick(rng, PEOPLE), pick(rng, VERBS)
  key = f"{who}: I {verb}"
  values = list(dict.fromkeys(_value(rng, facts, verb) for _ in range(pick(rng, STATEMENTS))))
  answer = values[-1]
  question = f"{key} what, at last?"
  room = budget - costs.line(question)
  turns = [f"{key} {value}" for value in values]
  size = 1 + lines_per_page(budget, costs.line(turns[-1]))
  room -= sum(map(costs.line, turns)) + costs.gap
  others: list[str] = []
  while room >= 0:
    line = _other_turn(rng, facts, key, answer)
    opens_session = (len(turns) + len(others)) % size == 0
    room -= costs.line(line) + opens_session * costs.gap
    others.append(line)
  others = others[:-1]
  if len(others) < 2:
    return None
  dialogue = _interleaved(rng, turns, others)
  sessions = [dialogue[first : first + size] for first in range(0, len(dialogue), size)]
  where = len(dialogue) - 1 - dialogue[::-1].index(turns[-1])
  pages = [
    Page(f"session/{number}", lines, (where % size,) if number == where // size else ())
    for number, lines in enumerate(sessions)
  ]
  return Draft(
    pages=pages,
    question=question,
    answer=answer,
    reasoning=turns[-1],
    key=f"{key} ",
    used=turns,
    times=len(turns),
  )


def _value(rng: np.random.Generator, facts: Facts, verb: str) -> str:
  if verb in ("visit", "leave"):
    return pick(rng, facts.cities).name
  if verb == "study":
    return pick(rng, facts.countries).name
  attribute = "currency" if verb == "pay in" else "language"
  return pick(rng, pick(rng, facts.by_attribute[attribute]).facts[attribute]).value


def _other_turn(rng: np.random.Generator, facts: Facts, key: str, answer: str) -> str:
  """A statement by somebody else or about something else, and of another value."""
  while True:
    verb = pick(rng, VERBS)
    said = f"{pick(rng, PEOPLE)}: I {verb}"
    value = _value(rng, facts, verb)
    if said != key and value != answer:
      return f"{said} {value}"


def _interleaved(rng: np.random.Generator, turns: list[str], others: list[str]) -> list[str]:
  """Both lists mixed, each in its own order."""
  mine = set(shuffled(rng, range(len(turns) + len(others)))[: len(turns)])
  ours, theirs = iter(turns), iter(others)
  return [next(ours) if number in mine else next(theirs) for number in range(len(turns) + len(others))]

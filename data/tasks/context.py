"""A context made of documents: what the five generators share.

A generator lays out its evidence as `Page`s, takes distractors (from `Sheets`, where they are facts about places) until
the budget is spent, and hands back a `Draft`. `render` joins the pages and finds the evidence in the joined text.
Lengths are counted once for each line and remembered (`Costs`): a line break starts a new word in every tokenizer in
use, so that lengths of lines add up.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from qwenlong_jax.data.sources import Fact, Facts, Place
from qwenlong_jax.types import Span

T = TypeVar("T")

_MISSES = 3
_MOST_LINES = 4
_DRAWS = 2000


@dataclass(slots=True)
class Page:
  """One document of a context; `evidence` indexes its lines."""

  document: str
  lines: list[str]
  evidence: tuple[int, ...] = ()


@dataclass(slots=True)
class Draft:
  """What a generator made, before it is rendered. `key` occurs in the context exactly `times` times."""

  pages: list[Page]
  question: str
  answer: str
  reasoning: str
  key: str
  used: list[str] = field(default_factory=list)
  times: int = 1


class Costs:
  """Lengths of lines, questions and pages under one `length` function (characters, tokens), each counted once.

  `gap` is what an empty line between documents adds to the line break.
  """

  def __init__(self, length: Callable[[str], int]):
    self.length = length
    self._lines: dict[str, int] = {}
    self.gap = max(0, length("a\n\na") - length("a\na"))

  def line(self, text: str) -> int:
    cost = self._lines.get(text)
    if cost is None:
      cost = self._lines[text] = self.length("\n" + text)
    return cost

  def page(self, page: Page) -> int:
    return self.gap + sum(map(self.line, page.lines))


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
  return items[int(rng.random() * len(items))]


def shuffled(rng: np.random.Generator, items: Iterable[T]) -> list[T]:
  result = list(items)
  for last in range(len(result) - 1, 0, -1):
    other = int(rng.random() * (last + 1))
    result[last], result[other] = result[other], result[last]
  return result


def fact_about(rng: np.random.Generator, place: Place, attribute: str) -> Fact:
  return pick(rng, place.facts[attribute])


def lines_per_page(budget: int, line: int) -> int:
  """One line a document in the shortest contexts, so that evidence still spreads; fuller sheets as they grow."""
  return min(_MOST_LINES, max(1, budget // (10 * line)))


class Sheets:
  """Pages of facts about places, in which no key is ever used twice (`used` is what the context already says)."""

  def __init__(self, rng: np.random.Generator, facts: Facts, size: int):
    self.rng, self.facts, self.size = rng, facts, size
    self.used: set[str] = set()

  def page(self, fact: Fact, evidence: bool = False) -> Page:
    """A sheet about the fact's subject, the fact at a random line of it."""
    rng, place = self.rng, self.facts.places[fact.subject]
    self.used.add(fact.key)
    lines = [fact.text]
    if self.size > 1:
      for attribute in shuffled(rng, place.facts)[: self.size - 1]:
        other = fact_about(rng, place, attribute)
        if other.key not in self.used:
          self.used.add(other.key)
          lines.insert(int(rng.random() * (len(lines) + 1)), other.text)
    return Page(f"geonames/{place.name}", lines, (lines.index(fact.text),) if evidence else ())

  def fact(self, attribute: str, accept: Callable[[Fact], bool] = lambda fact: True) -> Fact | None:
    """A random fact of that attribute that the context does not hold yet, or None if none is found."""
    places = self.facts.by_attribute[attribute]
    for _ in range(30 if places else 0):
      fact = fact_about(self.rng, pick(self.rng, places), attribute)
      if fact.key not in self.used and accept(fact):
        return fact
    return None

  def distractors(self, near: Sequence[str]) -> Iterator[Page]:
    """Endless pages, half of them about the attributes `near`, the others about anything."""
    rejected = 0
    while rejected < _DRAWS:
      if near and self.rng.random() < 0.5:
        fact = self.fact(pick(self.rng, near))
      else:
        place = pick(self.rng, self.facts.cities if self.rng.random() < 0.7 else self.facts.countries)
        fact = fact_about(self.rng, place, pick(self.rng, tuple(place.facts)))
      if fact is None or fact.key in self.used:
        rejected += 1
        continue
      rejected = 0
      yield self.page(fact)
    raise ValueError(
      f"the {self.facts.split} split has no facts left after {len(self.used)} to fill a context this long; "
      "ask for a smaller budget"
    )


def fill(pages: list[Page], distractors: Iterable[Page], room: int, costs: Costs) -> int:
  """Adds distractors to `pages` while they fit in `room`; gives back the room left."""
  misses = 0
  for page in distractors:
    cost = costs.page(page)
    if cost <= room:
      pages.append(page)
      room -= cost
    else:
      misses += 1
      if misses == _MISSES:
        break
  return room


def render(pages: Sequence[Page]) -> tuple[str, tuple[Span, ...]]:
  """The context, documents parted by an empty line, and where its evidence stands."""
  spans: list[Span] = []
  start = 0
  for page in pages:
    for number, line in enumerate(page.lines):
      if number in page.evidence:
        spans.append(Span(page.document, start, start + len(line)))
      start += len(line) + 1
    start += 1
  return "\n\n".join("\n".join(page.lines) for page in pages), tuple(spans)

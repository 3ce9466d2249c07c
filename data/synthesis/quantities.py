"""Which numbers are quantities, to be added, averaged or increased: not years, nor what only tells things apart."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from qwenlong_jax.data.synthesis.outline import Entity, Fact

_YEAR = re.compile(r"(?:1\d|20)\d\d|2100")
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
# Anywhere in an attribute, and as its last word: "number of rooms" is a quantity, "room number" is none.
_NAMING = {"id", "ids", "identifier", "isbn", "issn", "zip", "postcode", "phone", "fax", "lat", "lon", "lng"}
_NAMING |= {"latitude", "longitude"}
_NAMING_LAST = {"code", "number", "no", "nr", "rank", "year"}
_DENSE = 2  # numbers that count through, at most so many times as far apart: some stand in other splits


def dated(entities: Sequence[tuple[int, Entity]]) -> tuple[tuple[int, Entity], ...]:
  """The entities with their documents; numbers of attributes that are all years are none any more, but years."""
  yearly: dict[str, bool] = defaultdict(lambda: True)
  for _, entity in entities:
    for fact in entity.facts.values():
      yearly[fact.attribute] &= fact.number is None or _YEAR.fullmatch(fact.value) is not None

  def plain(fact: Fact) -> Fact:
    return replace(fact, number=None) if yearly[fact.attribute] else fact

  return tuple((d, replace(e, facts={name: plain(fact) for name, fact in e.facts.items()})) for d, e in entities)


def addable(attribute: str, facts: Iterable[tuple[int, Fact]]) -> bool:
  """Whether an attribute's numbers are quantities; `facts` with their documents. Not so codes and coordinates, by the
  attribute's words, and integers that count through in each document, or from document to document."""
  words = [word.casefold() for word in _WORDS.findall(attribute)]
  if _NAMING & set(words) or _NAMING_LAST & set(words[-1:]):
    return False
  found = defaultdict(list)
  for document, fact in facts:
    if fact.number is not None:
      found[document].append(fact.number if not fact.unit else 0.5)
  several = [numbers for numbers in found.values() if len(numbers) > 1]
  return not all(map(_counting, several or [[number for numbers in found.values() for number in numbers]]))


def _counting(numbers: Sequence[float]) -> bool:
  whole = all(number.is_integer() for number in numbers)
  return whole and len(set(numbers)) == len(numbers) and max(numbers) - min(numbers) < _DENSE * len(numbers)

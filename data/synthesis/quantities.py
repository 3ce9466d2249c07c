"""Which numbers are quantities, to be added, averaged or increased: not years, nor what only tells things apart."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from qwenlong_jax.data.synthesis.outline import Entity, Fact

_YEAR = re.compile(r"(?:1\d|20)\d\d|2100")
_YEAR_WITHIN = re.compile(r"(?<!\w)(?:1\d|20)\d\d(?!\w)")
# A word of a name that says when, and what happens then: "First published", but not "shares issued".
_WHEN = {"year", "years", "date", "dates", "dated", "since", "until"}
_HAPPENS = """born built closed commissioned completed constructed created died discovered established founded founding
  inaugurated incorporated independence introduced invented issued launched opened published released"""
_EVENTS = frozenset(_HAPPENS.split())
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
# Anywhere in an attribute, and as its last word: "number of rooms" is a quantity, "room number" is none.
_NAMING = {"id", "ids", "identifier", "isbn", "issn", "zip", "postcode", "phone", "fax", "lat", "lon", "lng"}
_NAMING |= {"latitude", "longitude"}
_NAMING_LAST = {"code", "number", "no", "nr", "rank", "year"}
_INTENSIVE = {"average", "density", "mean", "median", "per", "percent", "percentage", "rate", "rates", "ratio", "share"}
_DENSE = 2  # numbers that count through, at most so many times as far apart: some stand in other splits


def dated(entities: Sequence[tuple[int, Entity]]) -> tuple[tuple[int, Entity], ...]:
  """The entities with their documents; numbers of attributes that state years are none any more, but years."""
  stated = defaultdict(list)
  for _, entity in entities:
    for fact in entity.facts.values():
      stated[fact.attribute].append(fact)
  yearly = {attribute for attribute, facts in stated.items() if _yearly(attribute, facts)}

  def plain(fact: Fact) -> Fact:
    return replace(fact, number=None) if fact.attribute in yearly else fact

  return tuple((d, replace(e, facts={name: plain(fact) for name, fact in e.facts.items()})) for d, e in entities)


def _yearly(attribute: str, facts: Sequence[Fact]) -> bool:
  """Whether an attribute's numbers, which all may be years, are said to be: by its name, or by half of what it states
  beside them, as "March 1912" does."""
  words = {word.casefold() for word in _WORDS.findall(attribute.rpartition(" > ")[2].removeprefix("column "))}
  named = bool(words & _WHEN) or bool(words & _EVENTS and words <= _EVENTS | {"first", "last", "in"})
  others = [fact.value for fact in facts if fact.number is None]
  return _perhaps_years(facts) and (named or 2 * sum(map(bool, map(_YEAR_WITHIN.search, others))) >= len(others) > 0)


def _perhaps_years(facts: Iterable[Fact]) -> bool:
  """No number with a separator of thousands or a unit is a year."""
  return all(_YEAR.fullmatch(fact.value) for fact in facts if fact.number is not None)


def addable(attribute: str, facts: Iterable[tuple[int, Fact]]) -> bool:
  """Whether an attribute's numbers are quantities; `facts` with their documents. Not so codes and coordinates, by the
  attribute's words, integers that count through in each document, or from document to document, and what may as well be
  years."""
  facts = list(facts)
  words = [word.casefold() for word in _WORDS.findall(attribute)]
  if _NAMING & set(words) or _NAMING_LAST & set(words[-1:]) or _perhaps_years(fact for _, fact in facts):
    return False
  found = defaultdict(list)
  for document, fact in facts:
    if fact.number is not None:
      found[document].append(fact.number if not fact.unit else 0.5)
  several = [numbers for numbers in found.values() if len(numbers) > 1]
  return not all(map(_counting, several or [[number for numbers in found.values() for number in numbers]]))


def summable(attribute: str, unit: str) -> bool:
  """Whether a sum of an attribute's numbers means something: not of percentages, rates or averages, by name or unit."""
  named = f"{attribute.rpartition(' > ')[2]} {unit}"
  words = {word.casefold() for word in _WORDS.findall(named)}
  return "%" not in named and "/" not in unit and not words & _INTENSIVE


def _counting(numbers: Sequence[float]) -> bool:
  whole = all(number.is_integer() for number in numbers)
  return whole and len(set(numbers)) == len(numbers) and max(numbers) - min(numbers) < _DENSE * len(numbers)

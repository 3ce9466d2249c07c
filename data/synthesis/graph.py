"""The entities of a corpus as a graph: which attributes are common, who names whom, and descriptions that denote one.

An entity is never named: it is described by facts, made vague (a range, a decade), and the description is counted on
the whole graph to be true of exactly that one.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from qwenlong_jax.data.synthesis.corpus import Corpus, linked
from qwenlong_jax.data.synthesis.outline import Entity, Fact
from qwenlong_jax.data.synthesis.quantities import addable

HOLDERS = 6  # entities that must have an attribute before it is asked about
_BRACKETS = re.compile(r"\([^()]*\)")
_YEAR = re.compile(r"\b(1[0-9]{3}|20[0-9]{2})\b")


@dataclass(frozen=True)
class Constraint:
  """`attribute` "is" a text, "begins" with one, is "between" two numbers (the second excluded) or "year"s."""

  attribute: str
  test: str
  values: tuple[Any, ...]
  unit: str = ""

  def holds(self, entity: Entity) -> bool:
    fact = entity.facts.get(self.attribute)
    if fact is None:
      return False
    if self.test == "between":
      return fact.number is not None and fact.unit == self.unit and self.values[0] <= fact.number < self.values[1]
    if self.test == "year":
      when = year(fact)
      return when is not None and self.values[0] <= when < self.values[1]
    return fact.value == self.values[0] if self.test == "is" else fact.value.startswith(self.values[0])

  def phrase(self) -> str:
    if self.test == "between":
      low, high = (number_text(value, self.unit) for value in self.values)
      return f'"{self.attribute}" is at least {low} and below {high}'
    if self.test == "year":
      return f'"{self.attribute}" falls in the years {self.values[0]} to {self.values[1] - 1}'
    return f'"{self.attribute}" {"is" if self.test == "is" else "begins with the words"} "{self.values[0]}"'


@dataclass(frozen=True)
class Graph:
  """`common`: entities with facts of attributes that HOLDERS entities have; `links`: (entity, attribute) -> entity.
  Of these attributes are `numeric`, `dated`, and `grouping`: of few short texts."""

  corpus: Corpus
  common: tuple[int, ...]
  links: tuple[tuple[int, str, int], ...]
  numeric: tuple[str, ...]
  dated: tuple[str, ...]
  grouping: tuple[str, ...]

  @staticmethod
  def of(corpus: Corpus) -> "Graph":
    graph = _GRAPHS.get(id(corpus))
    if graph is None or graph.corpus is not corpus:
      _GRAPHS.clear()
      graph = _GRAPHS[id(corpus)] = _build(corpus)
    return graph

  def entity(self, number: int) -> Entity:
    return self.corpus.entities[number][1]

  def document(self, number: int) -> int:
    return self.corpus.entities[number][0]

  @cached_property
  def across(self) -> tuple[tuple[int, str, int], ...]:
    """The links from document to document; by turns, and equally often, those of each kind of entity."""
    kinds: dict[str, list[tuple[int, str, int]]] = {}
    for link in self.links:
      if self.document(link[0]) != self.document(link[2]):
        kinds.setdefault(self.entity(link[0]).noun, []).append(link)
    most = max(map(len, kinds.values()), default=0)
    return tuple(found[turn % len(found)] for turn in range(most) for found in kinds.values())

  def known(self, attribute: str) -> bool:
    return len(self.corpus.holders.get(attribute, ())) >= HOLDERS

  def evidence(self, number: int, attribute: str) -> tuple[int, int, int]:
    fact = self.entity(number).facts[attribute]
    return self.document(number), fact.start, fact.end

  def seemingly(self, link: str, number: int) -> int:
    """How many entities name one in code, if whatever stands before a dot is overlooked."""
    name = self.entity(number).name.removeprefix("class ")
    return sum(self.entity(n).facts[link].value.rpartition(".")[2] == name for n in self.corpus.holders[link])

  def statement(self, number: int, attribute: str) -> str:
    return f"{attribute}: {self.entity(number).facts[attribute].value}"

  def scopes(self, *numbers: int) -> list[tuple[int, int, int]]:
    return [(self.document(n), *scope) for n in numbers if (scope := self.entity(n).scope)]


_GRAPHS: dict[int, Graph] = {}


def _build(corpus: Corpus) -> Graph:
  known = {attribute for attribute, holders in corpus.holders.items() if len(holders) >= HOLDERS}
  links, numeric, dated = [], [], []
  for number, (_, entity) in enumerate(corpus.entities):
    for attribute in entity.facts:
      other = linked(corpus, entity, attribute) if attribute in known else None
      if other is not None and other != number:
        links.append((number, attribute, other))
  for attribute in sorted(known):
    stated = [(d, entity.facts[attribute]) for d, entity in (corpus.entities[n] for n in corpus.holders[attribute])]
    units = [fact.unit for _, fact in stated if fact.number is not None]
    if units and len(set(units)) == 1 and len(units) > 0.8 * len(stated):
      numeric += [attribute] if addable(attribute, stated) else []
    elif sum(fact.number is None and year(fact) is not None for _, fact in stated) > 0.6 * len(stated):
      dated.append(attribute)
  links.sort(key=lambda link: hash_of(corpus.entities[link[0]][1].name, link[1]))
  common = [n for n, (_, entity) in enumerate(corpus.entities) if len(known & entity.facts.keys()) > 1]
  grouping = tuple(attribute for attribute in sorted(known) if _few_texts(corpus, attribute))
  return Graph(corpus, tuple(common), tuple(links), tuple(numeric), tuple(dated), grouping)


def _few_texts(corpus: Corpus, attribute: str) -> bool:
  """Whether its values are short texts, each of several entities."""
  values = [corpus.entities[n][1].facts[attribute].value for n in corpus.holders[attribute]]
  plain = all(len(value) < 40 and not re.search(r"[\d'\"\\{}]", value) for value in values)
  return plain and 3 <= len(set(values)) <= len(values) / 3


def describe(rng: np.random.Generator, graph: Graph, number: int, avoid: Sequence[str] = ()) -> list[Constraint] | None:
  """Facts about an entity, made vague, which together are true of no other entity of the graph; two, three at most."""
  entity = graph.entity(number)
  avoid = (*avoid, entity.key)
  attributes = [a for a in entity.facts if entity.asked and graph.known(a) and a not in avoid]
  found: list[Constraint] = []
  left = {n for n in range(len(graph.corpus.entities))}
  for attribute in (attributes[n] for n in rng.permutation(len(attributes))):
    constraint = vague(rng, entity.facts[attribute])
    if constraint is None:
      continue
    holding = {n for n in graph.corpus.holders[attribute] if constraint.holds(graph.entity(n))} & left
    if len(holding) < len(left):
      left = holding
      found.append(constraint)
    if len(found) > 1 and len(left) == 1:
      return found
    if len(found) == 3:
      return None
  return None


def vague(rng: np.random.Generator, fact: Fact) -> Constraint | None:
  """A number to its second digit, a whole one to a five at least; a date to ten or fifty years; a text as it begins."""
  if fact.number is not None:
    step = 10.0 ** math.floor(math.log10(abs(fact.number)) - 1) if fact.number else 1.0
    step = max(step, 5.0) if float(fact.number).is_integer() else step
    low = math.floor(fact.number / step + 1e-9) * step
    low, high = round(low, 10), round(low + step, 10)
    return Constraint(fact.attribute, "between", (low, high), fact.unit) if low <= fact.number < high else None
  if (when := year(fact)) is not None:
    span = 10 if rng.random() < 0.7 else 50
    return Constraint(fact.attribute, "year", (when // span * span, when // span * span + span))
  if re.search(r'["@\[]|://', fact.value):
    return None
  if len(fact.value) <= 60:
    return Constraint(fact.attribute, "is", (fact.value,))
  words = re.match(r"(\S+ ){4}\S+", fact.value)
  return Constraint(fact.attribute, "begins", (words[0],)) if words else None


def said(constraints: Sequence[Constraint], noun: str) -> str:
  return f"the {noun} whose " + " and whose ".join(constraint.phrase() for constraint in constraints)


def as_json(constraints: Sequence[Constraint]) -> list[list[Any]]:
  return [[c.attribute, c.test, list(c.values), c.unit] for c in constraints]


def year(fact: Fact) -> int | None:
  """The one year that a short value holds outside of brackets; None for a quantity, if it is not a bare year too."""
  found = _YEAR.findall(_BRACKETS.sub("", fact.value)) if len(fact.value) <= 80 else []
  bare = fact.number is None or found == [fact.value]
  return int(found[0]) if bare and len(set(found)) == 1 else None


def shown(fact: Fact) -> str:
  """A value without what is added in brackets."""
  return re.sub(r"\s*\([^()]*\)\s*$", "", fact.value).strip().rstrip(".")


def number_text(value: float, unit: str) -> str:
  text = f"{value:,.10g}" if value != int(value) else f"{int(value):,}"
  return f"${text}" if unit == "$" else f"{text}%" if unit == "%" else f"{text} {unit}".strip()


def clear(value: float, decimals: int) -> bool:
  """Whether a value is far enough from a tie that every correct computation rounds it alike."""
  scaled = abs(value) * 10**decimals
  return math.isfinite(scaled) and scaled < 1e14 and abs(scaled % 1 - 0.5) > 1e-4


def rounded(value: float, decimals: int, unit: str = "") -> str:
  text = f"{value:,.{decimals}f}"
  sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
  return f"{sign}${digits}" if unit == "$" else f"{text}%" if unit == "%" else f"{text} {unit}".strip()


def pick(rng: np.random.Generator, items: Sequence[Any]) -> Any:
  return items[int(rng.random() * len(items))]


def hash_of(*values: Any) -> int:
  return int.from_bytes(hashlib.sha256(repr(values).encode()).digest()[:8], "big")

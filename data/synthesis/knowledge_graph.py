"""Multi-hop questions from a graph of entities (section 3 of the report): paths whose nodes lie in different documents.

An entity is never named: it is described by facts, made vague (a range, a decade), and the description is counted on
the whole graph to denote exactly that one. Four kinds: multi-fact, temporal, causal, hypothetical.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwenlong_jax.data.synthesis.context import Asked, Context, Draft, places
from qwenlong_jax.data.synthesis.corpus import Corpus, Place, linked
from qwenlong_jax.data.synthesis.outline import Entity, Fact

KINDS = ("multi_fact", "temporal", "causal", "hypothetical")
HOLDERS = 6  # entities that must have an attribute before it is asked about
_DRAWS = 30
_EMPTY = ("none", "yes", "no", "na", "0")
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


def year(fact: Fact) -> int | None:
  """The one year that a short value holds outside of brackets; None for a quantity."""
  found = _YEAR.findall(_BRACKETS.sub("", fact.value)) if len(fact.value) <= 80 else []
  return int(found[0]) if fact.number is None and len(set(found)) == 1 else None


def number_text(value: float, unit: str) -> str:
  text = f"{value:,.10g}" if value != int(value) else f"{int(value):,}"
  return f"${text}" if unit == "$" else f"{text}%" if unit == "%" else f"{text} {unit}".strip()


def shown(fact: Fact) -> str:
  """A value without what is added in brackets."""
  return re.sub(r"\s*\([^()]*\)\s*$", "", fact.value).strip().rstrip(".")


def draft(rng: np.random.Generator, corpus: Corpus, kind: str, number: int) -> Draft | None:
  """A question of a kind; those of successive numbers start from different links."""
  graph = Graph.of(corpus)
  if not graph.common:
    return None
  match kind:
    case "multi_fact":
      return _hop(rng, graph, number // len(KINDS))
    case "causal":
      return _inverse_hop(rng, graph, number // len(KINDS))
    case "temporal":
      return _years(rng, graph)
    case "hypothetical":
      return _suppose(rng, graph)
  raise ValueError(f"{kind=} is none of {', '.join(KINDS)}")


@dataclass(frozen=True)
class Graph:
  """`common`: entities with facts of attributes that HOLDERS entities have; `links`: (entity, attribute) -> entity."""

  corpus: Corpus
  common: tuple[int, ...]
  links: tuple[tuple[int, str, int], ...]
  numeric: tuple[str, ...]
  dated: tuple[str, ...]

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

  def known(self, attribute: str) -> bool:
    return len(self.corpus.holders.get(attribute, ())) >= HOLDERS

  def evidence(self, number: int, attribute: str) -> tuple[int, int, int]:
    fact = self.entity(number).facts[attribute]
    return self.document(number), fact.start, fact.end

  def scopes(self, *numbers: int) -> list[tuple[int, int, int]]:
    return [(self.document(n), *scope) for n in numbers if (scope := self.entity(n).scope)]


_GRAPHS: dict[int, Graph] = {}


def _build(corpus: Corpus) -> Graph:
  known = {attribute for attribute, holders in corpus.holders.items() if len(holders) >= HOLDERS}
  links, numeric, dated = [], [], []
  for number, (document, entity) in enumerate(corpus.entities):
    for attribute in entity.facts:
      other = linked(corpus, entity, attribute) if attribute in known else None
      if other is not None and corpus.entities[other][0] != document:
        links.append((number, attribute, other))
  for attribute in sorted(known):
    facts = [corpus.entities[n][1].facts[attribute] for n in corpus.holders[attribute]]
    units = [fact.unit for fact in facts if fact.number is not None]
    if units and len(set(units)) == 1 and len(units) > 0.8 * len(facts):
      numeric.append(attribute)
    elif sum(year(fact) is not None for fact in facts) > 0.6 * len(facts):
      dated.append(attribute)
  links.sort(key=lambda link: hash_of(corpus.entities[link[0]][1].name, link[1]))
  common = [n for n, (_, entity) in enumerate(corpus.entities) if len(known & entity.facts.keys()) > 1]
  return Graph(corpus, tuple(common), tuple(links), tuple(numeric), tuple(dated))


def describe(rng: np.random.Generator, graph: Graph, number: int, avoid: Sequence[str] = ()) -> list[Constraint] | None:
  """Facts about an entity, made vague, which together are true of no other entity of the graph; two, three at most."""
  entity = graph.entity(number)
  attributes = [a for a in entity.facts if graph.known(a) and a not in avoid]
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
  if fact.number is not None:
    step = 10.0 ** math.floor(math.log10(abs(fact.number)) - 1) if fact.number else 1.0
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


def as_json(constraints: Sequence[Constraint]) -> list[list[Any]]:
  return [[c.attribute, c.test, list(c.values), c.unit] for c in constraints]


def said(constraints: Sequence[Constraint], noun: str) -> str:
  return f"the {noun} whose " + " and whose ".join(constraint.phrase() for constraint in constraints)


def answerable(fact: Fact) -> bool:
  text = shown(fact)
  return 0 < len(text) <= 60 and len(text.split()) <= 8 and '"' not in text and text.lower() not in _EMPTY


def _answers(graph: Graph, number: int, avoid: Sequence[str]) -> list[str]:
  facts = graph.entity(number).facts
  return [a for a, fact in facts.items() if graph.known(a) and a not in avoid and answerable(fact)]


def _hop(rng: np.random.Generator, graph: Graph, turn: int) -> Draft | None:
  """Described entity -> the one that a fact of it names -> a fact of that."""
  if not graph.links:
    return None
  for draw in range(_DRAWS):
    start, link, end = _pick(rng, graph.links) if draw else graph.links[turn % len(graph.links)]
    constraints = describe(rng, graph, start, avoid=(link,))
    attributes = _answers(graph, end, avoid=(link,))
    if constraints and attributes:
      noun, attribute = graph.entity(start).noun, _pick(rng, attributes)
      question = (
        f'Find {said(constraints, noun)}. Its "{link}" names another {noun} of the text above '
        f'(the first one that stands there). What is the "{attribute}" of that other {noun}?'
      )
      program = {"kind": "hop", "noun": noun, "start": as_json(constraints), "link": link, "answer": attribute}
      return _path(graph, "multi_fact", question, [(start, constraints), (start, link), (end, attribute)], program)
  return None


def _inverse_hop(rng: np.random.Generator, graph: Graph, turn: int) -> Draft | None:
  """Described entity -> the only one that names it -> a fact of that."""
  if not graph.links:
    return None
  naming: dict[tuple[str, int], list[int]] = {}
  for start, link, end in graph.links:
    naming.setdefault((link, end), []).append(start)
  only = [(starts[0], link, end) for (link, end), starts in naming.items() if len(starts) == 1]
  for draw in range(_DRAWS if only else 0):
    start, link, end = _pick(rng, only) if draw else only[turn % len(only)]
    constraints = describe(rng, graph, end, avoid=(link,))
    attributes = _answers(graph, start, avoid=(link,))
    if constraints and attributes:
      noun, attribute = graph.entity(start).noun, _pick(rng, attributes)
      question = (
        f"Suppose that {said(constraints, noun)} no longer existed. Exactly one other {noun} of the text above would "
        f'be affected because its "{link}" names it first. What is the "{attribute}" of that other {noun}?'
      )
      program = {"kind": "inverse", "noun": noun, "start": as_json(constraints), "link": link, "answer": attribute}
      return _path(graph, "causal", question, [(end, constraints), (start, link), (start, attribute)], program)
  return None


def _path(graph: Graph, kind: str, question: str, steps: Sequence[tuple[int, Any]], program: dict[str, Any]) -> Draft:
  """`steps`: entities with an attribute or with the constraints that describe them; the last one is the answer."""
  evidence = []
  for number, what in steps:
    for attribute in [what] if isinstance(what, str) else [c.attribute for c in what]:
      evidence.append(graph.evidence(number, attribute))
  number, attribute = steps[-1]
  fact = graph.entity(number).facts[attribute]
  corpus = graph.corpus
  lines = [corpus.documents[document].text[start:end].strip() for document, start, end in evidence]

  def ask(context: Context) -> Asked | None:
    others = dict.fromkeys(shown(other) for _, other in places(context, attribute))
    if sum(shown(other) == shown(fact) for _, other in places(context, attribute)) != 1 or len(others) < 3:
      return None
    reasoning = "; ".join(line[:120] for line in lines[:-1])
    return Asked(question, shown(fact), tuple(others), program, reasoning)

  return Draft(
    kind=kind,
    evidence=evidence,
    ask=ask,
    query=question,
    scopes=graph.scopes(*{number for number, _ in steps}),
    decoys=decoys(graph, [attribute, *(c[0] for c in program["start"])], {document for document, _, _ in evidence}),
  )


def decoys(graph: Graph, attributes: Sequence[str], taken: set[int], each: int = 5) -> list[Place]:
  """Sections of other documents which state the same attributes: near, but not answering."""
  found = []
  for attribute in attributes:
    holders = [n for n in graph.corpus.holders.get(attribute, ()) if graph.document(n) not in taken]
    # A different part of them for each question, but no randomness of its own.
    first = hash_of(attribute, *sorted(taken)) % max(len(holders), 1)
    for number in (holders[first:] + holders[:first])[:each]:
      document, start, end = graph.evidence(number, attribute)
      found.append(Place(document, graph.corpus.covering(document, start, end)[0]))
  return found


def hash_of(*values: Any) -> int:
  return int.from_bytes(hashlib.sha256(repr(values).encode()).digest()[:8], "big")


def _two(
  rng: np.random.Generator, graph: Graph, attribute: str, number: bool
) -> list[tuple[int, list[Constraint]]] | None:
  """Two described entities of different documents that have the attribute."""
  holders = graph.corpus.holders[attribute]
  found: list[tuple[int, list[Constraint]]] = []
  for _ in range(_DRAWS):
    candidate = _pick(rng, holders)
    fact = graph.entity(candidate).facts[attribute]
    if (fact.number is None) if number else (year(fact) is None):
      continue
    if any(graph.document(candidate) == graph.document(other) for other, _ in found):
      continue
    constraints = describe(rng, graph, candidate, avoid=(attribute,))
    if constraints:
      found.append((candidate, constraints))
    if len(found) == 2:
      return found
  return None


def _years(rng: np.random.Generator, graph: Graph) -> Draft | None:
  """How far two described entities lie apart in time."""
  if not graph.dated:
    return None
  attribute = _pick(rng, graph.dated)
  two = _two(rng, graph, attribute, number=False)
  if two is None:
    return None
  (one, first), (other, second) = two
  noun = graph.entity(one).noun
  years = [year(graph.entity(n).facts[attribute]) or 0 for n in (one, other)]
  if years[0] == years[1]:
    return None
  question = (
    f"Take {said(first, noun)}, and {said(second, noun)}. By how many years do the years of their "
    f'"{attribute}" differ?'
  )
  return _pair(graph, "temporal", question, attribute, two, str(abs(years[0] - years[1])), {"kind": "years"})


def _suppose(rng: np.random.Generator, graph: Graph) -> Draft | None:
  """By how much one number would exceed another, were it larger."""
  if not graph.numeric:
    return None
  attribute, percent = _pick(rng, graph.numeric), 5 * (1 + int(rng.random() * 12))
  two = _two(rng, graph, attribute, number=True)
  if two is None:
    return None
  (one, first), (other, second) = two
  facts = [graph.entity(n).facts[attribute] for n in (one, other)]
  x, y = (fact.number or 0.0 for fact in facts)
  value = x * (1 + percent / 100) - y
  decimals = 2 if abs(value) < 100 else 0
  if facts[0].unit != facts[1].unit or not clear(value, decimals) or round(value, decimals) == 0 or x <= 0:
    return None
  noun, unit = graph.entity(one).noun, facts[0].unit
  question = (
    f'Suppose that the "{attribute}" of {said(first, noun)} were {percent}% higher than stated. How much is it then '
    f'minus the "{attribute}" of {said(second, noun)}? Round to {decimals} decimals; the result may be negative.'
  )
  program = {"kind": "suppose", "percent": percent, "decimals": decimals}
  return _pair(graph, "hypothetical", question, attribute, two, rounded(value, decimals, unit), program)


def clear(value: float, decimals: int) -> bool:
  """Whether a value is far enough from a tie that every correct computation rounds it alike."""
  scaled = abs(value) * 10**decimals
  return math.isfinite(scaled) and scaled < 1e14 and abs(scaled % 1 - 0.5) > 1e-4


def rounded(value: float, decimals: int, unit: str = "") -> str:
  text = f"{value:,.{decimals}f}"
  sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
  return f"{sign}${digits}" if unit == "$" else f"{text}%" if unit == "%" else f"{text} {unit}".strip()


def _pair(
  graph: Graph, kind: str, question: str, attribute: str, two: Any, answer: str, program: dict[str, Any]
) -> Draft:
  evidence = [
    graph.evidence(n, a) for n, constraints in two for a in [*(c.attribute for c in constraints), attribute]
  ]
  noun = graph.entity(two[0][0]).noun
  program |= {"noun": noun, "attribute": attribute, "of": [as_json(constraints) for _, constraints in two]}
  values = [graph.entity(n).facts[attribute].value for n, _ in two]

  def ask(context: Context) -> Asked | None:
    stated = dict.fromkeys(shown(fact) for _, fact in places(context, attribute))
    return Asked(question, answer, (answer, *stated), program, f'"{attribute}": {values[0]}; {values[1]}')

  return Draft(
    kind=kind,
    evidence=evidence,
    ask=ask,
    query=question,
    scopes=graph.scopes(*(n for n, _ in two)),
    decoys=decoys(graph, [attribute, *(c[0] for of in program["of"] for c in of)], {d for d, _, _ in evidence}),
  )


def _pick(rng: np.random.Generator, items: Sequence[Any]) -> Any:
  return items[int(rng.random() * len(items))]

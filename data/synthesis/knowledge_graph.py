"""Multi-hop questions from a graph of entities (section 3 of the report): paths whose nodes lie in different documents.

Four kinds: multi-fact, temporal, causal, hypothetical.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qwenlong_jax.data.synthesis.context import Asked, Context, Draft, places
from qwenlong_jax.data.synthesis.corpus import Corpus, Place
from qwenlong_jax.data.synthesis.graph import (
  Constraint,
  Graph,
  as_json,
  clear,
  describe,
  hash_of,
  pick,
  rounded,
  said,
  shown,
  year,
)
from qwenlong_jax.data.synthesis.outline import Fact

KINDS = ("multi_fact", "temporal", "causal", "hypothetical")
_DRAWS = 30
_PAIRED = 6  # facts whose pairs are candidates
_EMPTY = ("none", "yes", "no", "na", "0")


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


def answerable(fact: Fact) -> bool:
  text = shown(fact)
  return 0 < len(text) <= 60 and len(text.split()) <= 8 and '"' not in text and text.lower() not in _EMPTY


def _answers(graph: Graph, number: int, avoid: Sequence[str]) -> list[str]:
  entity = graph.entity(number)
  facts = entity.facts if entity.asked else {}
  return [a for a, fact in facts.items() if graph.known(a) and a not in avoid and answerable(fact)]


def _hop(rng: np.random.Generator, graph: Graph, turn: int) -> Draft | None:
  """Described entity -> the one that a fact of it names -> a fact of that."""
  for draw in range(_DRAWS if graph.across else 0):
    start, link, end = pick(rng, graph.across) if draw else graph.across[turn % len(graph.across)]
    constraints = describe(rng, graph, start, avoid=(link,))
    key = graph.entity(end).key
    attributes = _answers(graph, end, avoid=(link, key))
    if constraints and attributes:
      noun, attribute = graph.entity(start).noun, pick(rng, attributes)
      question = (
        f'Find {said(constraints, noun)}. Its "{link}" names another {noun} of the text above{_by(key)} '
        f'(the first one that stands there). What is the "{attribute}" of that other {noun}?'
      )
      program = {"kind": "hop", "noun": noun, "start": as_json(constraints), "link": link, "answer": attribute}
      steps = [(start, constraints), (start, link), *([(end, key)] if key else []), (end, attribute)]
      return _path(graph, "multi_fact", question, steps, program | {"key": key})
  return None


def _inverse_hop(rng: np.random.Generator, graph: Graph, turn: int) -> Draft | None:
  """Described entity -> the only one that names it -> a fact of that."""
  naming: dict[tuple[str, int], list[int]] = {}
  for start, link, end in graph.links:
    naming.setdefault((link, end), []).append(start)
  only = [(start, link, end) for start, link, end in graph.across if len(naming[link, end]) == 1]
  for draw in range(_DRAWS if only else 0):
    start, link, end = pick(rng, only) if draw else only[turn % len(only)]
    key = graph.entity(end).key
    constraints = describe(rng, graph, end, avoid=(link,))
    attributes = _answers(graph, start, avoid=(link,))
    if constraints and attributes and graph.seemingly(link, end) < 2:
      noun, attribute = graph.entity(start).noun, pick(rng, attributes)
      question = (
        f"Suppose that {said(constraints, noun)} no longer existed. Exactly one other {noun} of the text above would "
        f'be affected because its "{link}" names it first{"," if key else ""}{_by(key)}. What is '
        f'the "{attribute}" of that other {noun}?'
      )
      program = {"kind": "inverse", "noun": noun, "start": as_json(constraints), "link": link, "answer": attribute}
      steps = [(end, constraints), *([(end, key)] if key else []), (start, link), (start, attribute)]
      return _path(graph, "causal", question, steps, program | {"key": key})
  return None


def _by(key: str) -> str:
  return f' by its "{key}"' if key else ""


def _path(graph: Graph, kind: str, question: str, steps: Sequence[tuple[int, Any]], program: dict[str, Any]) -> Draft:
  """`steps`: entities with an attribute or with the constraints that describe them; the last one is the answer."""
  stated = [(n, a) for n, what in steps for a in ([what] if isinstance(what, str) else [c.attribute for c in what])]
  evidence = [graph.evidence(*one) for one in stated]
  number, attribute = steps[-1]
  fact = graph.entity(number).facts[attribute]
  reasoning = "; ".join(graph.statement(*one)[:120] for one in stated[:-1])

  def ask(context: Context) -> Asked | None:
    others = dict.fromkeys(shown(other) for _, other in places(context, attribute))
    if sum(shown(other) == shown(fact) for _, other in places(context, attribute)) != 1 or len(others) < 3:
      return None
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


def _two(
  rng: np.random.Generator, graph: Graph, attribute: str, number: bool
) -> list[tuple[int, list[Constraint]]] | None:
  """Two described entities of different documents that have the attribute."""
  holders = graph.corpus.holders[attribute]
  found: list[tuple[int, list[Constraint]]] = []
  for _ in range(_DRAWS):
    candidate = pick(rng, holders)
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
  attribute = pick(rng, graph.dated)
  two = _two(rng, graph, attribute, number=False)
  if two is None:
    return None
  (one, first), (_, second) = two
  noun = graph.entity(one).noun
  question = (
    f"Take {said(first, noun)}, and {said(second, noun)}. By how many years do the years of their "
    f'"{attribute}" differ?'
  )

  def apart(one: Fact, other: Fact) -> str | None:
    years = year(one), year(other)
    return None if None in years or years[0] == years[1] else str(abs((years[0] or 0) - (years[1] or 0)))

  return _pair(graph, "temporal", question, attribute, two, apart, {"kind": "years"})


def _suppose(rng: np.random.Generator, graph: Graph) -> Draft | None:
  """By how much one number would exceed another, were it larger."""
  if not graph.numeric:
    return None
  attribute, percent = pick(rng, graph.numeric), 5 * (1 + int(rng.random() * 12))
  two = _two(rng, graph, attribute, number=True)
  if two is None:
    return None
  (one, first), (other, second) = two
  facts = [graph.entity(n).facts[attribute] for n in (one, other)]
  decimals = 2 if max(abs(fact.number or 0.0) for fact in facts) < 100 else 0
  noun = graph.entity(one).noun
  question = (
    f'Suppose that the "{attribute}" of {said(first, noun)} were {percent}% higher than stated. How much is it then '
    f'minus the "{attribute}" of {said(second, noun)}? Round to {decimals} decimals; the result may be negative.'
  )

  def excess(one: Fact, other: Fact) -> str | None:
    if one.number is None or other.number is None or one.unit != other.unit or one.number <= 0:
      return None
    value = one.number * (1 + percent / 100) - other.number
    return rounded(value, decimals, one.unit) if clear(value, decimals) and round(value, decimals) else None

  program = {"kind": "suppose", "percent": percent, "decimals": decimals}
  return _pair(graph, "hypothetical", question, attribute, two, excess, program)


def _pair(
  graph: Graph,
  kind: str,
  question: str,
  attribute: str,
  two: Sequence[tuple[int, list[Constraint]]],
  result: Callable[[Fact, Fact], str | None],
  program: dict[str, Any],
) -> Draft | None:
  """A question whose answer is `result` of two described entities' facts; other pairs' results are the candidates."""
  evidence = [
    graph.evidence(n, a) for n, constraints in two for a in [*(c.attribute for c in constraints), attribute]
  ]
  program |= {
    "noun": graph.entity(two[0][0]).noun,
    "attribute": attribute,
    "of": [as_json(constraints) for _, constraints in two],
  }
  facts = [graph.entity(n).facts[attribute] for n, _ in two]
  answer = result(*facts)
  if answer is None:
    return None

  def ask(context: Context) -> Asked | None:
    stated = [fact for _, fact in places(context, attribute)][:_PAIRED]
    others = [result(one, other) for one, other in itertools.permutations(stated, 2)]
    candidates = tuple(dict.fromkeys(value for value in [answer, *others] if value is not None))
    reasoning = f'"{attribute}": {facts[0].value}; {facts[1].value}'
    return Asked(question, answer, candidates, program, reasoning) if len(candidates) > 3 else None

  return Draft(
    kind=kind,
    evidence=evidence,
    ask=ask,
    query=question,
    scopes=graph.scopes(*(n for n, _ in two)),
    decoys=decoys(graph, [attribute, *(c[0] for of in program["of"] for c in of)], {d for d, _, _ in evidence}),
  )

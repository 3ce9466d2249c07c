"""Multi-hop questions over facts that a model extracted: statements with unknowns in them, of which the last is asked.

A path leads from a named entity through unnamed ones, each step stated in another document than the one before. Every
step has exactly one end in the graph, by the graph's uncautious count, and no sentence that states it goes on to
another ("joined A, and B a year later"), as whoever confirmed the triples said. Such a graph is open: it does not know
what was not extracted, so that "exactly one" holds of what was. Therefore a context is refused in which a paragraph
outside of the known passages names the near end of a step (or stands on a page named after it) together with a word of
the step's relation: it might state another end. What stays possible is another end in words that share no stem with the
relation, or with the near end behind a pronoun from an earlier paragraph; and that two documents mean different
entities by one proper name. The screens of `verification_by_model` see such a question as never solved, at best.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from qwenlong_jax.data.synthesis.context import Asked, Context, Draft
from qwenlong_jax.data.synthesis.corpus import Corpus, Place
from qwenlong_jax.data.synthesis.generate import Order, aimed_at, finish
from qwenlong_jax.data.synthesis.graph import hash_of, pick
from qwenlong_jax.data.synthesis.proposals import Rules, says_more, wording
from qwenlong_jax.data.synthesis.triple_graph import Edge, TripleGraph, loose, stems
from qwenlong_jax.data.synthesis.triples import Triple
from qwenlong_jax.types import Example

KIND = "path"
_TRIES = 12
_DRAWS = 60
_UNKNOWNS = "XYZ"
_RULES = Rules(longest_question=120, longest_answer=8)
_CANDIDATES = 3  # the fewest
_PARAGRAPH = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Step:
  """From the near end of an edge to the far one, as `triple` states it; `forward`: the near end is the head."""

  edge: Edge
  forward: bool
  triple: Triple

  @property
  def near(self) -> int:
    return self.edge.head if self.forward else self.edge.tail

  @property
  def far(self) -> int:
    return self.edge.tail if self.forward else self.edge.head

  def name(self, far: bool) -> str:
    """As the passage writes it."""
    return self.triple.tail if self.forward is far else self.triple.head

  def statement(self, near: str, far: str) -> str:
    head, tail = (near, far) if self.forward else (far, near)
    return f'"{head} {self.triple.relation} {tail}"'


@dataclass(frozen=True)
class Ground:
  """The graph, and the corpus of the documents that it was merged from (of all that its triples name)."""

  corpus: Corpus
  graph: TripleGraph

  @cached_property
  def number_of(self) -> dict[str, int]:
    return {document.id: number for number, document in enumerate(self.corpus.documents)}

  def place(self, triple: Triple) -> tuple[int, int, int]:
    return self.number_of[triple.document], triple.start, triple.end

  def passage(self, triple: Triple) -> str:
    document, start, end = self.place(triple)
    return self.corpus.documents[document].text[start:end]


def sample(ground: Ground, order: Order, length: Callable[[str], int]) -> tuple[Example | None, list[str]]:
  """(the example, why drafts before it were dropped); None if none of a number of drafts was kept. As
  `generate.sample`, for the task multi_hop.
  """
  dropped: list[str] = []
  for draw in range(_TRIES):
    rng = np.random.default_rng([order.seed, order.number, draw])
    target = aimed_at(rng, order)
    found = draft(rng, ground, order.number + draw)
    example = "no_draft" if found is None else finish(ground.corpus, rng, order, found, target, length)
    if isinstance(example, Example):
      model = ", ".join(example.provenance["program"]["models"])
      return replace(example, provenance=example.provenance | {"model": model}), dropped
    dropped.append(f"multi_hop/{KIND}/{example}")
  return None, dropped


def draft(rng: np.random.Generator, ground: Ground, number: int) -> Draft | None:
  """A question over two steps or, every third, three; those of successive numbers start from different edges."""
  graph, steps = ground.graph, 3 if number % 3 == 2 else 2
  for draw in range(_DRAWS if graph.edges else 0):
    first = pick(rng, graph.edges) if draw else graph.edges[number % len(graph.edges)]
    path = _path(rng, graph, first, steps)
    if path and _determined(graph, path):
      found = _draft(ground, path)
      if found is not None:
        return found
  return None


def _path(rng: np.random.Generator, graph: TripleGraph, first: Edge, steps: int) -> list[Step] | None:
  """From an end of `first`, by proper names that two documents share, without a way back."""
  path = [Step(first, bool(rng.random() < 0.5), pick(rng, first.triples))]
  while len(path) < steps:
    here, seen = path[-1].far, {n for step in path for n in (step.near, step.far)}
    options = [
      Step(edge, edge.head == here, triple)
      for edge in graph.at[here]
      if (edge.tail if edge.head == here else edge.head) not in seen
      for triple in edge.triples
      if triple.document != path[-1].triple.document
    ]
    if not options or not graph.nodes[here].proper:
      return None
    path.append(pick(rng, options))
  return path


def _determined(graph: TripleGraph, path: Sequence[Step]) -> bool:
  """Whether every step leads to exactly one entity, whatever could be its near end and its relation, and no sentence
  that states it goes on to another.
  """
  return not any(triple.shared for step in path for triple in step.edge.triples) and all(
    step.edge.relation.stems and graph.beyond(step.near, step.edge.relation, step.forward) == {step.far}
    for step in path
  )


def _draft(ground: Ground, path: Sequence[Step]) -> Draft | None:
  corpus = ground.corpus
  question, answer = _question(path), path[-1].name(far=True)
  hidden = frozenset(name for step in path for name in ground.graph.nodes[step.far].loose)
  if wording(question, answer, _RULES)[0] or says_more(answer) or _holds(question, hidden):
    return None
  quotes = [ground.passage(step.triple) for step in path]
  if _holds("\n".join(quotes[:-1]), ground.graph.nodes[path[-1].far].loose):
    return None  # the answer stands beside a step before it

  def accept(document: int, sections: list[int]) -> bool:
    text = "".join(corpus.text(Place(document, section)) for section in sections)
    return not any(_may_say_more(ground, step, corpus.names[document], text) for step in path)

  def ask(context: Context) -> Asked | None:
    pages = [(corpus.names[document], context.page_text(n)) for n, (document, _) in enumerate(context.pages)]
    if any(_may_say_more(ground, step, *page) for step in path for page in pages):
      return None
    candidates = tuple(dict.fromkeys([answer, *_others(ground, context, path)]))
    reasoning = "; ".join(" ".join(quote.split())[:120] for quote in quotes[:-1])
    program = _program(ground, path)
    return Asked(question, answer, candidates, program, reasoning) if len(candidates) >= _CANDIDATES else None

  return Draft(
    kind=KIND,
    evidence=[ground.place(step.triple) for step in path],
    ask=ask,
    query=" ".join([question, *(step.name(far=True) for step in path[:-1])]),
    decoys=_decoys(ground, path),
    accept=accept,
  )


def _question(path: Sequence[Step]) -> str:
  unknowns = _UNKNOWNS[: len(path)]
  ends = [path[0].name(far=False), *unknowns]
  said = "; ".join(step.statement(*pair) for step, pair in zip(path, itertools.pairwise(ends)))
  listed = f"{', '.join(unknowns[:-1])} and {unknowns[-1]}"
  return (
    f"The documents above state each of these, in these words or in others: {said}. The letters {listed} stand for "
    f"names or terms. What is {unknowns[-1]}, as it is written there?"
  )


def _program(ground: Ground, path: Sequence[Step]) -> dict[str, Any]:
  """`names`: all names of the entities, in the order of the path."""
  triples = [step.triple for step in path]
  quotes = [ground.passage(triple) for triple in triples]
  return {
    "kind": "triples",
    "anchor": path[0].name(far=False),
    "steps": [
      {"head": one.head, "relation": one.relation, "tail": one.tail, "forward": step.forward, "quote": quote}
      for step, one, quote in zip(path, triples, quotes)
    ],
    "names": [list(ground.graph.nodes[n].names) for n in (path[0].near, *(step.far for step in path))],
    "models": sorted({one.model for one in triples}),
    "prompts": sorted({one.prompt for one in triples}),
  }


def _may_say_more(ground: Ground, step: Step, title: str, text: str) -> bool:
  """Whether a page may state another end of a step, outside of the passages that are known to state this one."""
  for triple in step.edge.triples:
    text = text.replace(ground.passage(triple), " ")
  near = ground.graph.nodes[step.near].loose
  on_its_page = _holds(title, near)
  return any(
    step.edge.relation.stems & stems(paragraph) and (on_its_page or _holds(paragraph, near))
    for paragraph in _PARAGRAPH.split(text)
  )


def _holds(text: str, names: frozenset[str]) -> bool:
  padded = f" {loose(text)} "
  return any(f" {name} " in padded for name in names)


def _others(ground: Ground, context: Context, path: Sequence[Step]) -> list[str]:
  """Names that other facts in the context hold, those first that stand in the answer's relation in its place."""
  last, taken = path[-1], {n for step in path for n in (step.near, step.far)}
  first: list[str] = []
  then: list[str] = []
  for edge in ground.graph.edges:
    for triple in edge.triples:
      if context.find(*ground.place(triple)):
        ends = [(edge.head, triple.head, False), (edge.tail, triple.tail, True)]
        for node, name, is_tail in ends:
          like = is_tail is last.forward and edge.relation.stems & last.edge.relation.stems
          if node not in taken:
            (first if like else then).append(name)
  return [*first, *then]


def _decoys(ground: Ground, path: Sequence[Step], most: int = 10) -> list[Place]:
  """Sections of other documents with facts about the same entities or of the same relations."""
  taken = {step.triple.document for step in path}
  nodes, said = {step.far for step in path}, {stem for step in path for stem in step.edge.relation.stems}
  near = [
    triple
    for edge in ground.graph.edges
    if {edge.head, edge.tail} & nodes or edge.relation.stems & said
    for triple in edge.triples
    if triple.document not in taken
  ]
  near.sort(key=lambda triple: hash_of(triple.document, triple.start, *sorted(taken)))
  places = [ground.place(triple) for triple in near[:most]]
  return [Place(document, ground.corpus.covering(document, start, end)[0]) for document, start, end in places]

"""The documents of one split and domain, with all that generators ask about them: entities, words, near sections.

Letters: D documents, S sections (of all of them).
"""

import re
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qwenlong_jax.data.documents import Document
from qwenlong_jax.data.ranking import BM25
from qwenlong_jax.data.synthesis import functions, quantities, tables
from qwenlong_jax.data.synthesis.modules import is_of
from qwenlong_jax.data.synthesis.outline import Entity, Fact, Section, entities, sections

REFERRING = 0.5  # of a column's values, or of the names in the other: a part of either may be in another split
_WORD = re.compile(r"[^\W\d_]{5,}")
_SENTENCE = re.compile(r'(?:(?<=[.!?#] )|(?<=\n)|(?<=  )|(?<=""))[A-Z](?:[^\n.!?"|]|\.(?=\w)){38,158}[.!?](?=["\s])')
_QUOTED, _QUOTED_CHARACTERS = 200, 100_000  # documents, and of each, in which sentences are looked for
_QUANTITY = re.compile(r"\s+\d[\d.,]*\s*(?:%|km)$")


@dataclass(frozen=True, slots=True)
class Place:
  """A section's document and its place in the document, counted from 0."""

  document: int
  section: int


@dataclass(frozen=True)
class Corpus:
  """`name` tells corpora of a split and domain apart, `names` are unique titles. `sections` of each document, and their
  lengths in `tokens`; `entities` with their documents."""

  split: str
  domain: str
  name: str
  documents: Sequence[Document]
  names: tuple[str, ...]
  sections: tuple[tuple[Section, ...], ...]
  tokens: tuple[tuple[int, ...], ...]
  entities: tuple[tuple[int, Entity], ...]

  def text(self, place: Place) -> str:
    section = self.sections[place.document][place.section]
    return self.documents[place.document].text[section.start : section.end]

  @cached_property
  def places(self) -> list[Place]:
    return [Place(d, s) for d, found in enumerate(self.sections) for s in range(len(found))]

  @cached_property
  def holders(self) -> dict[str, list[int]]:
    """Attribute -> entities that have it."""
    found = defaultdict(list)
    for number, (_, entity) in enumerate(self.entities):
      for attribute in entity.facts:
        found[attribute].append(number)
    return dict(found)

  @cached_property
  def by_name(self) -> dict[str, int]:
    """Entity by the name that others call it by; names of several entities are left out."""
    found: dict[str, int | None] = {}
    for number, (_, entity) in enumerate(self.entities):
      name = called(entity)
      found[name] = None if name in found else number
    return {name: number for name, number in found.items() if number is not None}

  @cached_property
  def words(self) -> dict[str, np.ndarray]:
    """Lower-case word of five letters or more -> the documents that hold it; words of one document are left out."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, document in enumerate(self.documents):
      for word in set(_WORD.findall(document.text.lower())):
        found[word].append(number)
    return {word: np.array(where) for word, where in sorted(found.items()) if len(where) > 1}

  @cached_property
  def sentences(self) -> dict[str, list[tuple[int, int, int]]]:
    """Lower-case word -> (document, start, end) of sentences of one line that hold it, in some of the documents; none
    with quotes or cells of tables in it, and none twice."""
    found: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    known = set()
    for document in range(0, len(self.documents), len(self.documents) // _QUOTED + 1):
      for match in _SENTENCE.finditer(self.documents[document].text, 0, _QUOTED_CHARACTERS):
        if match[0] not in known:
          known.add(match[0])
          for word in set(_WORD.findall(match[0].lower())):
            found[word].append((document, *match.span()))
    return dict(found)

  @cached_property
  def _ranker(self) -> BM25:
    ranker = BM25()
    ranker.index([_WORD.findall(self.text(place).lower()) or [""] for place in self.places], show_progress=False)
    return ranker

  def near(self, query: str, count: int) -> list[Place]:
    """The sections that BM25 finds nearest to `query`, best first."""
    words = sorted(set(_WORD.findall(query.lower())))
    known = [word for word in words if word in self._ranker.vocab_dict]
    if not known:
      return []
    scores = self._ranker.get_scores(known)
    # A stable order: floating-point ties go to the earlier section.
    best = np.argsort(-scores, kind="stable")[:count]
    return [self.places[place] for place in best if scores[place] > 0]

  def times(self, attribute: str) -> Counter[str]:
    """How many entities state each value of an attribute, in lower case."""
    if attribute not in self._times:
      facts = (self.entities[number][1].facts[attribute] for number in self.holders.get(attribute, ()))
      self._times[attribute] = Counter(fact.value.casefold() for fact in facts)
    return self._times[attribute]

  def refers(self, column: str, key: str) -> bool:
    """Whether a column's values are the names in another: many of them, as a few may be so by chance."""
    if (column, key) not in self._refers:
      values, names = self.times(column), self.times(key)
      held = sum(value in names for value in values)
      self._refers[column, key] = column != key and held >= REFERRING * min(len(values), len(names))
    return self._refers[column, key]

  @cached_property
  def _refers(self) -> dict[tuple[str, str], bool]:
    return {}

  @cached_property
  def _times(self) -> dict[str, Counter[str]]:
    return {}

  def covering(self, document: int, start: int, end: int) -> list[int]:
    """The document's sections that hold characters [start, end)."""
    found = self.sections[document]
    first = bisect_right(found, start, key=lambda section: section.end)
    return list(range(first, bisect_left(found, end, key=lambda section: section.start)))

  @cached_property
  def _of(self) -> dict[int, list[int]]:
    found = defaultdict(list)
    for number, (document, _) in enumerate(self.entities):
      found[document].append(number)
    return found

  def of(self, document: int) -> list[int]:
    """A document's entities."""
    return self._of.get(document, [])


def called(entity: Entity) -> str:
  """What others call it by; a row by its key, beside which a document may have the same name."""
  if entity.noun == tables.NOUN:
    return f"| {entity.name.casefold()}" if entity.key else ""
  if entity.noun == functions.NOUN:
    return f"{entity.name}()"
  return entity.name.removeprefix("class ") if entity.noun == "class" else entity.name.casefold()


def make(
  split: str, domain: str, name: str, documents: Sequence[Document], count: Callable[[list[str]], list[int]]
) -> Corpus:
  """`count` gives the lengths of texts in tokens."""
  found = tuple((n, entity) for n, document in enumerate(documents) for entity in _all(document))
  cut = tuple(tuple(tables.headed(document, sections(document))) for document in documents)
  return Corpus(
    split=split,
    domain=domain,
    name=name,
    documents=documents,
    names=tuple(_unique(documents)),
    sections=cut,
    tokens=tuple(
      tuple(count([document.text[s.start : s.end] for s in found])) for document, found in zip(documents, cut)
    ),
    entities=found if domain == "code" else quantities.dated(found),
  )


def _all(document: Document) -> list[Entity]:
  return [*entities(document), *functions.functions(document), *tables.rows(document)]


def _unique(documents: Iterable[Document]) -> Iterable[str]:
  """Titles; where two are equal, with the document's id."""
  seen: dict[str, int] = defaultdict(int)
  for document in documents:
    seen[document.title] += 1
  for document in documents:
    yield document.title if seen[document.title] == 1 else f"{document.title} ({document.id})"


def linked(corpus: Corpus, entity: Entity, attribute: str) -> int | None:
  """The entity that a fact's value names first, if it is one of the corpus. A class names its base class only, a
  function what it calls first, a row of a table what its column refers to."""
  value = entity.facts[attribute].value
  if entity.noun in ("class", functions.NOUN):
    return _imported(corpus, entity.facts[attribute]) if attribute in ("base class", functions.CALL) else None
  first = _QUANTITY.sub("", re.split(r"[;(]|,(?!\d)", value)[0].strip()).casefold()
  if entity.noun != tables.NOUN:
    return corpus.by_name.get(first)
  other = corpus.by_name.get(f"| {first}")
  if other is None:
    return None
  key = corpus.entities[other][1].key
  return other if corpus.times(key)[first] == 1 and corpus.refers(attribute, key) else None


def _imported(corpus: Corpus, fact: Fact) -> int | None:
  """The class or function that code names. By a dotted name it is one of the module that was imported under that name,
  and so is every function: one of another module may have the name of a function's argument."""
  call = "()" if fact.attribute == functions.CALL else ""
  other = corpus.by_name.get(fact.value.rpartition(".")[2] + call)
  if other is None or ("." not in fact.value and not call):
    return other
  path = corpus.documents[corpus.entities[other][0]].source.path
  return other if fact.meant.endswith(fact.value) and is_of(fact.meant, path) else None

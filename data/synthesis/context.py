"""A long context made of excerpts: what a question needs, near and far distractors around it, up to a target length.

A page is an excerpt of one document: a line `=== name ===`, then sections in their order, `[...]` where some are left
out, and again the heading and the table's header that one behind a gap belongs to. Pages with evidence are spread over
the context at equal distances, from a random offset: any depth is as likely as another, whatever the sample's number.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from qwenlong_jax.data.synthesis.corpus import Corpus, Place

GAP = "\n[...]\n\n"
_MISSES = 40
_SHORTEST = 300  # tokens that a piece of a page may always have: a section


@dataclass(frozen=True)
class Asked:
  """A question about a finished context. `candidates`: the answers that a reader could confuse, the right one among
  them. `program`: what recomputes the answer from the context, as plain JSON. `evidence`: characters [start, end) of
  the context, beside the draft's: what came to be evidence in this context only."""

  question: str
  answer: str
  candidates: tuple[str, ...]
  program: dict[str, Any]
  reasoning: str = ""
  evidence: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Draft:
  """What a context must hold, and the question that can be asked of it then.

  `evidence`: (document, start, end), characters of documents. `scopes`: likewise, what must be there beside it.
  `decoys` are added first, then what is near `query`. A page is left out unless `accept(document, its sections)`.
  `talk`: texts that stand between the pages, in this order; `heard`: which of them are evidence; `quoted`: if they end
  in words of documents, where these stand there.
  `ask` returns None if the context that came about does not bear the question.
  """

  kind: str
  evidence: list[tuple[int, int, int]]
  ask: Callable[["Context"], Asked | None]
  query: str
  scopes: list[tuple[int, int, int]] = field(default_factory=list)
  decoys: list[Place] = field(default_factory=list)
  accept: Callable[[int, list[int]], bool] = lambda document, sections: True
  talk: Sequence[str] = ()
  heard: Sequence[int] = ()
  quoted: Sequence[tuple[int, int, int]] = ()


@dataclass(frozen=True)
class Context:
  """`pages`: (document, its sections) in their order; `starts`: where in `text` each page's sections begin; `talk`:
  where what is said between the pages stands."""

  corpus: Corpus
  pages: tuple[tuple[int, tuple[int, ...]], ...]
  text: str
  spans: tuple[tuple[int, int], ...]
  starts: tuple[tuple[int, ...], ...]
  talk: tuple[tuple[int, int], ...] = ()

  @cached_property
  def _page(self) -> dict[int, int]:
    return {document: number for number, (document, _) in enumerate(self.pages)}

  def page(self, document: int) -> int | None:
    return self._page.get(document)

  def find(self, document: int, start: int, end: int) -> tuple[int, int] | None:
    """Where characters [start, end) of a document stand in the context, if all of them do, without a gap."""
    page = self.page(document)
    if page is None:
      return None
    for number, at in zip(self.pages[page][1], self.starts[page]):
      section = self.corpus.sections[document][number]
      if section.start <= start < section.end:
        found = at + start - section.start, at + end - section.start
        return found if self.text[slice(*found)] == self.corpus.documents[document].text[start:end] else None
    return None

  def origin(self, start: int, end: int) -> tuple[int, int, int] | None:
    """The document whose characters stand at [start, end), and which they are; None for titles, headings said again,
    and across gaps."""
    page = bisect_right(self.spans, start, key=lambda span: span[0]) - 1
    document, found = self.pages[page]
    piece = bisect_right(self.starts[page], start) - 1
    if piece < 0:
      return None
    first = self.corpus.sections[document][found[piece]].start + start - self.starts[page][piece]
    stated = self.corpus.documents[document].text[first : first + end - start]
    return (document, first, first + end - start) if stated == self.text[start:end] else None

  def title(self, page: int) -> tuple[int, int]:
    """Where its title line stands."""
    start = self.spans[page][0]
    return start, self.text.index("\n", start)

  def body(self, page: int) -> tuple[int, int]:
    """Where the page stands without its title line."""
    return self.title(page)[1] + 1, self.spans[page][1]

  def page_text(self, page: int) -> str:
    """Without its title."""
    return self.text[slice(*self.body(page))]


def compose(corpus: Corpus, rng: np.random.Generator, draft: Draft, target: int) -> Context | None:
  """A context of at most `target` tokens by the sections' counts; None if what is needed leaves too little room.

  All pages have as many pieces as the one that needs most of them: gaps shall not tell where the evidence is.
  """
  needed: dict[int, set[int]] = {}
  for document, start, end in [*draft.evidence, *draft.scopes]:
    needed.setdefault(document, set()).update(corpus.covering(document, start, end))
  pieces = max((_pieces(found) for found in needed.values()), default=1)
  pages = {document: _in_pieces(corpus, rng, document, found, pieces) for document, found in needed.items()}
  room = target - sum(_cost(corpus, document, found) for document, found in pages.items())
  room -= sum(len(said) // 3 + 8 for said in draft.talk)
  if (room < target // 2 and len(needed) < 6) or room < 0:
    return None
  longest = max(target // 10, _SHORTEST * pieces)
  misses = 0
  for place in _distractors(corpus, rng, draft):
    if place.document in pages:
      continue
    found = _in_pieces(corpus, rng, place.document, {place.section}, pieces)
    cost = _cost(corpus, place.document, found)
    if cost > min(longest, room) or not draft.accept(place.document, sorted(found)):
      misses += 1
      if misses > _MISSES:
        break
      continue
    found = _longer(corpus, draft, place.document, found, min(longest, room) - cost)
    pages[place.document] = found
    room -= _cost(corpus, place.document, found)
    if room < _SHORTEST:
      break
  if len(pages) < 2:
    return None
  before = sorted(int(rng.random() * (len(pages) + 1)) for _ in draft.talk)
  return render(corpus, _ordered(rng, list(needed), pages), draft.talk, before)


def _distractors(corpus: Corpus, rng: np.random.Generator, draft: Draft) -> Iterator[Place]:
  """Decoys, then near sections and those of any document by turns."""
  yield from draft.decoys
  near = iter(corpus.near(draft.query, 60))
  for number in range(4 * len(corpus.documents) + 200):
    place = next(near, None) if number % 2 else None
    yield place or corpus.places[int(rng.random() * len(corpus.places))]


def _pieces(found: set[int]) -> int:
  """Runs of consecutive sections."""
  return sum(section - 1 not in found for section in found)


def _in_pieces(corpus: Corpus, rng: np.random.Generator, document: int, found: set[int], pieces: int) -> set[int]:
  """With sections from elsewhere in the document, until there are so many pieces or no room between them."""
  found = set(found)
  others = rng.permutation(len(corpus.sections[document]))
  for section in map(int, others):
    if _pieces(found) >= pieces:
      break
    if not found & {section - 1, section, section + 1}:
      found.add(section)
  return found


def _longer(corpus: Corpus, draft: Draft, document: int, found: set[int], room: int) -> set[int]:
  """With the sections that follow its pieces, while they fit and leave a gap."""
  tokens = corpus.tokens[document]
  for section in range(1, len(tokens)):
    room_left = room - tokens[section] - 4
    if section - 1 in found and section not in found and section + 1 not in found and room_left >= 0:
      longer = found | {section}
      if draft.accept(document, sorted(longer)):
        found, room = longer, room_left
  return found


def _header(corpus: Corpus, document: int) -> int:
  return 8 + len(corpus.names[document]) // 2


def _cost(corpus: Corpus, document: int, found: set[int]) -> int:
  above = sum(len(corpus.sections[document][s].heading) // 3 for s in found if s - 1 not in found)
  return _header(corpus, document) + above + sum(corpus.tokens[document][section] + 4 for section in found)


def _ordered(
  rng: np.random.Generator, needed: list[int], pages: dict[int, set[int]]
) -> list[tuple[int, tuple[int, ...]]]:
  """Needed pages at equal distances from a random offset, the others between them."""
  others = [document for document in pages if document not in set(needed)]
  order = [others[n] for n in rng.permutation(len(others))]
  offset = rng.random()
  needed = [needed[n] for n in rng.permutation(len(needed))]
  for place, document in enumerate(needed):
    order.insert(int((place + offset) / len(needed) * (len(order) + 1)), document)
  return [(document, tuple(sorted(pages[document]))) for document in order]


def render(
  corpus: Corpus, pages: list[tuple[int, tuple[int, ...]]], talk: Sequence[str] = (), before: Sequence[int] = ()
) -> Context:
  """`before`: the page before which each text of `talk` stands, not falling."""
  parts: list[str] = []
  spans, starts, said = [], [], []
  at = 0

  def write(text: str) -> None:
    nonlocal at
    parts.append(text)
    at += len(text)

  for number in range(len(pages) + 1):
    for text, place in zip(talk, before):
      if place == number:
        said.append((at, at + len(text)))
        write(text + "\n\n")
    if number == len(pages):
      break
    document, found = pages[number]
    begin, where = at, []
    write(f"=== {corpus.names[document]} ===\n")
    last = -1
    for section in found:
      if section != last + 1:
        write(GAP)
        if heading := corpus.sections[document][section].heading:
          write(heading + "\n")
      where.append(at)
      write(corpus.text(Place(document, section)))
      last = section
    if last != len(corpus.sections[document]) - 1:
      write(GAP)
    spans.append((begin, at))
    starts.append(tuple(where))
    write("\n\n")
  return Context(corpus, tuple(pages), "".join(parts), tuple(spans), tuple(starts), tuple(said))


def places(context: Context, attribute: str) -> list[tuple[int, Any]]:
  """(entity, fact) of that attribute, for all that the context states in full."""
  found = []
  for number in context.corpus.holders.get(attribute, ()):
    document, entity = context.corpus.entities[number]
    fact = entity.facts[attribute]
    if context.find(document, fact.start, fact.end):
      found.append((number, fact))
  return found

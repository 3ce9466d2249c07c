"""Reading comprehension without a model: which of the documents speaks of several things, and what else it says.

The words that are asked for stand each in several documents of the context, together in one only, so that no single
passage answers.
"""

import itertools
import re
from collections.abc import Sequence

import numpy as np

from qwenlong_jax.data.synthesis.context import Asked, Context, Draft
from qwenlong_jax.data.synthesis.corpus import Corpus, Place
from qwenlong_jax.data.synthesis.graph import hash_of, pick

KINDS = ("opening", "count", "both")
COUNTS = range(2, 7)  # documents that hold one word and not the other
_DRAWS = 60
_OPENING = 6  # words


def draft(rng: np.random.Generator, corpus: Corpus, kind: str, number: int) -> Draft | None:
  """What a count comes to hangs on the sample's `number`, and its draft always has as many decoys: neither another draw
  nor the room in the context shall make one answer more frequent than another."""
  words = _words(corpus)
  counts = [3, 3]
  if kind == "count":
    # Few samples of a corpus may be kept, its first: not all of them start with the smallest count.
    turn = (number // len(KINDS) + hash_of(corpus.split, corpus.domain, corpus.name)) % len(COUNTS)
    counts = [COUNTS[turn], COUNTS[-1 - turn]]
  for _ in range(_DRAWS if len(words) > 1 else 0):
    pair = pick(rng, words), pick(rng, words)
    first, second = (set(corpus.words[word]) for word in pair)
    both, alone = first & second, [first - second, second - first]
    if pair[0] == pair[1] or not both or any(len(alone[n]) < counts[n] for n in range(2)):
      continue
    document = pick(rng, sorted(both))
    at = [_find(corpus, document, word, pair) for word in pair]
    decoys = [_decoys(rng, corpus, sorted(alone[n]), word, pair, counts[n]) for n, word in enumerate(pair)]
    if None not in at and at[0] != at[1] and [len(found) for found in decoys] == counts:
      return _draft(rng, corpus, kind, document, pair, at, decoys)
  return None


def _words(corpus: Corpus) -> list[str]:
  """Words of a few documents each."""
  most = max(2 * COUNTS[-1], len(corpus.documents) // 8)
  return [word for word, where in corpus.words.items() if COUNTS[0] < len(where) <= most and len(word) > 6]


def _find(corpus: Corpus, document: int, word: str, words: tuple[str, str]) -> int | None:
  """The first section of a document that holds the word, if no reader doubts which of both it holds."""
  if _titled(corpus, document, words):
    return None
  text = corpus.documents[document].text
  for number, section in enumerate(corpus.sections[document]):
    shown = text[section.start : section.end]
    if _holds(shown, word):
      return None if any(_perhaps(shown, either) for either in words) else number
  return None


def _titled(corpus: Corpus, document: int, words: tuple[str, str]) -> bool:
  """Whether a word stands in the title, which some readers count to the excerpt and others do not."""
  return any(word in corpus.names[document].lower() for word in words)


def _decoys(
  rng: np.random.Generator, corpus: Corpus, documents: list[int], word: str, words: tuple[str, str], count: int
) -> list[Place]:
  """Where some of the documents hold the word, at most `count`."""
  found = ((d, _find(corpus, d, word, words)) for d in _some(rng, documents, len(documents)))
  return list(itertools.islice((Place(d, place) for d, place in found if place is not None), count))


def _holds(text: str, word: str) -> re.Match[str] | None:
  """Where a text holds a word, in capitals or not."""
  return re.search(rf"(?<!\w){word}(?!\w)", text, re.IGNORECASE)


def _perhaps(text: str, word: str) -> bool:
  """Whether some readers find the word in a text and others do not: beside digits and underscores only."""
  return not _holds(text, word) and bool(re.search(rf"(?<![^\W\d_]){word}(?![^\W\d_])", text, re.IGNORECASE))


def _some(rng: np.random.Generator, items: list[int], count: int) -> list[int]:
  return [items[n] for n in rng.permutation(len(items))[:count]]


def _draft(
  rng: np.random.Generator,
  corpus: Corpus,
  kind: str,
  document: int,
  words: tuple[str, str],
  at: Sequence[int | None],
  decoys: Sequence[Sequence[Place]],
) -> Draft:
  """`decoys` are to hold the first word or the second; no page beside them and the one with both holds any."""
  evidence, wanted = [], [len(places) for places in decoys]
  only = {place.document: word for word, places in zip(words, decoys) for place in places}
  for word, number in zip(words, at):
    section = corpus.sections[document][number or 0]
    match = _holds(corpus.documents[document].text[section.start : section.end], word)
    assert match is not None
    evidence.append((document, section.start + match.start(), section.start + match.end()))

  def accept(other: int, found: list[int]) -> bool:
    if _titled(corpus, other, words):
      return False
    text = "\n".join(corpus.text(Place(other, section)) for section in found)
    holds = [bool(_holds(text, word)) for word in words]
    return holds == [only.get(other) == word for word in words] and not any(_perhaps(text, word) for word in words)

  def ask(context: Context) -> Asked | None:
    pages = [context.page_text(n) for n in range(len(context.pages))]
    holds = [[bool(_holds(page, word)) for page in pages] for word in words]
    if any(_perhaps(page, word) for page in pages for word in words):
      return None
    return _asked(context, kind, words, pages, holds) if [sum(h) - 1 for h in holds] == wanted else None

  every = [*decoys[0], *decoys[1]]
  order = [every[n] for n in rng.permutation(len(every))]
  return Draft(kind=kind, evidence=evidence, ask=ask, query=" ".join(words), decoys=order, accept=accept)


def _asked(
  context: Context, kind: str, words: tuple[str, str], pages: list[str], holds: list[list[bool]]
) -> Asked | None:
  one, other = words
  both = [n for n in range(len(pages)) if holds[0][n] and holds[1][n]]
  if len(both) != 1:
    return None
  program = {"kind": kind, "words": list(words)}
  both_words = f'Exactly one of the excerpts above contains both the word "{one}" and the word "{other}".'
  names = [context.corpus.names[document] for document, _ in context.pages]
  if kind == "opening":
    openings = [opening(page) for page in pages]
    if len(set(openings)) < len(openings) or not all(openings) or headed(openings[both[0]], names[both[0]]):
      return None
    question = (
      f"{both_words} With which {_OPENING} words does that excerpt begin, its title not counted and all marks left out?"
    )
    said, evidence = f"The excerpt is {names[both[0]]}.", _opening(context, both[0])
    return Asked(question, openings[both[0]], tuple(openings), program, said, evidence)
  if kind == "count":
    count = sum(holds[0]) - 1
    question = f'How many of the excerpts above contain the word "{one}" but not the word "{other}"?'
    counted = tuple(_first(context, n, one) for n in range(len(pages)) if holds[0][n] and n != both[0])
    return Asked(question, str(count), tuple(map(str, COUNTS)), program, evidence=counted)
  following = both[0] + 1
  if following == len(pages):
    return None
  question = f"{both_words} What is the title of the excerpt that follows it?"
  said, evidence = f"The excerpt is {names[both[0]]}.", (context.title(following),)
  # The first follows none.
  return Asked(question, names[following], tuple(names[1:]), program, said, evidence)


def _first(context: Context, page: int, word: str) -> tuple[int, int]:
  """Where a page that holds a word does so first."""
  start, end = context.body(page)
  match = _holds(context.text[start:end], word)
  assert match is not None
  return start + match.start(), start + match.end()


def _opening(context: Context, page: int) -> tuple[tuple[int, int], ...]:
  """Where the opening words of a page stand: in one, or each alone where not all are of one piece."""
  words = re.compile(r"\w+").finditer(context.text, *context.body(page))
  places = [match.span() for match in itertools.islice(words, _OPENING)]
  whole = places[0][0], places[-1][1]
  return (whole,) if context.origin(*whole) else tuple(places)


def headed(words: str, title: str) -> bool:
  """Whether an excerpt begins with its title once more: to some readers that is the title, not to be counted."""
  return f"{words} ".startswith(f"{opening(title)} ")


def opening(page: str) -> str:
  """Its first words, of letters, digits and underscores."""
  return " ".join(re.findall(r"\w+", page)[:_OPENING])

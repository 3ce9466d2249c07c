"""Reading comprehension without a model: which of the documents speaks of several things, and what else it says.

The words that are asked for stand each in several documents of the context, together in one only, so that no single
passage answers.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from qwenlong_jax.data.synthesis.context import Asked, Context, Draft
from qwenlong_jax.data.synthesis.corpus import Corpus, Place

KINDS = ("opening", "count", "both")
_DRAWS = 60
_OPENING = 6  # words


def draft(rng: np.random.Generator, corpus: Corpus, kind: str) -> Draft | None:
  words = _words(corpus)
  if not words:
    return None
  for _ in range(_DRAWS):
    one, other = (_pick(rng, words) for _ in range(2))
    first, second = set(corpus.words[one]), set(corpus.words[other])
    both, only_first, only_second = first & second, first - second, second - first
    if one == other or not both or len(only_first) < 3 or len(only_second) < 3:
      continue
    document = _pick(rng, sorted(both))
    at = [_find(corpus, document, word) for word in (one, other)]
    if None in at or at[0] == at[1]:
      continue
    decoys = [Place(d, _find(corpus, d, word)) for d, word in _mixed(rng, only_first, only_second, one, other)]
    return _draft(corpus, kind, document, (one, other), at, decoys)
  return None


def _words(corpus: Corpus) -> list[str]:
  """Words of a few documents each."""
  most = max(8, len(corpus.documents) // 8)
  return [word for word, where in corpus.words.items() if 4 <= len(where) <= most and len(word) > 6]


def _find(corpus: Corpus, document: int, word: str) -> Any:
  """The first section of a document that holds the word."""
  pattern = _pattern(word)
  for number, section in enumerate(corpus.sections[document]):
    if pattern.search(corpus.documents[document].text, section.start, section.end):
      return number
  return None


def _pattern(word: str) -> re.Pattern[str]:
  return re.compile(rf"(?<![^\W\d_]){word}(?![^\W\d_])", re.IGNORECASE)


def _mixed(rng: np.random.Generator, first: set[int], second: set[int], one: str, other: str) -> list[tuple[int, str]]:
  found = []
  count = 3 + int(rng.random() * 3)
  for where, word in ((sorted(first), one), (sorted(second), other)):
    found += [(where[n], word) for n in rng.permutation(len(where))[:count]]
  return [found[n] for n in rng.permutation(len(found))]


def _draft(
  corpus: Corpus, kind: str, document: int, words: tuple[str, str], at: Sequence[int], decoys: list[Place]
) -> Draft:
  evidence = []
  for word, number in zip(words, at):
    section = corpus.sections[document][number]
    match = _pattern(word).search(corpus.documents[document].text, section.start, section.end)
    assert match is not None
    evidence.append((document, match.start(), match.end()))

  def ask(context: Context) -> Asked | None:
    pages = [context.page_text(n) for n in range(len(context.pages))]
    holds = [[bool(_pattern(word).search(page)) for page in pages] for word in words]
    return _asked(context, kind, words, pages, holds)

  return Draft(kind=kind, evidence=evidence, ask=ask, query=" ".join(words), decoys=[d for d in decoys if d.section is not None])


def _asked(
  context: Context, kind: str, words: tuple[str, str], pages: list[str], holds: list[list[bool]]
) -> Asked | None:
  one, other = words
  both = [n for n in range(len(pages)) if holds[0][n] and holds[1][n]]
  single = [sum(holds[0]) - len(both), sum(holds[1]) - len(both)]
  if len(both) != 1 or min(single) < 2:
    return None
  program = {"kind": kind, "words": list(words)}
  names = [context.corpus.names[document] for document, _ in context.pages]
  if kind == "opening":
    openings = [opening(page) for page in pages]
    if len(set(openings)) < len(openings) or not all(openings):
      return None
    question = (
      f'Exactly one of the excerpts above contains both the word "{one}" and the word "{other}". With which '
      f"{_OPENING} words does that excerpt begin, its title not counted?"
    )
    return Asked(question, openings[both[0]], tuple(openings), program, f"The excerpt is {names[both[0]]}.")
  if kind == "count":
    count = single[0]
    question = f'How many of the excerpts above contain the word "{one}" but not the word "{other}"?'
    candidates = tuple(str(n) for n in range(2, 9))
    return Asked(question, str(count), candidates, program) if str(count) in candidates else None
  following = both[0] + 1
  if following == len(pages):
    return None
  question = (
    f'Exactly one of the excerpts above contains both the word "{one}" and the word "{other}". What is the title of the '
    "excerpt that follows it?"
  )
  return Asked(question, names[following], tuple(names), program, f"The excerpt is {names[both[0]]}.")


def opening(page: str) -> str:
  """Its first words, marks before and after them left out."""
  return " ".join(re.findall(r"[^\s=\[\]]*\w[^\s=\[\]]*", page)[:_OPENING]).strip(".,;:!?\"'()#*-")


def _pick(rng: np.random.Generator, items: Sequence[Any]) -> Any:
  return items[int(rng.random() * len(items))]

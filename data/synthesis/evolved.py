"""Questions of the self-evolving trio among distractors: a question about a few documents becomes a sample.

A document that is as short as a distractor's page may be stands in the context whole, of a longer one the sections with
evidence do. No other page holds the answer.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from qwenlong_jax.data.synthesis.context import Asked, Context, Draft
from qwenlong_jax.data.synthesis.corpus import Corpus, Place
from qwenlong_jax.data.synthesis.generate import Order, aimed_at, finish
from qwenlong_jax.data.synthesis.proposals import gives_away, laid_out
from qwenlong_jax.types import Example

_DRAWS = 6
_WHOLE = 10  # a document of at most target / 10 tokens stays whole


def groups(tokens: Sequence[Sequence[int]], size: int, longest: int, most: int, seed: int) -> list[list[int]]:
  """At most `most` groups of `size` documents each, drawn by chance from runs of neighbours.

  `tokens` of each document's sections; documents of more than `longest` in all are passed over.
  """
  short = [number for number, of_one in enumerate(tokens) if sum(of_one) <= longest]
  found = [short[first : first + size] for first in range(0, len(short) - size + 1, size)]
  chosen = np.random.default_rng([seed, len(found)]).permutation(len(found))[:most]
  return [found[number] for number in chosen]


def place(
  corpus: Corpus, asked: Example, documents: Sequence[int], order: Order, length: Callable[[str], int]
) -> tuple[Example | None, list[str]]:
  """(the sample, why drafts before it were dropped); `asked` is what `evolve` made of these documents."""
  dropped: list[str] = []
  own = int.from_bytes(hashlib.sha256(asked.id.encode()).digest()[:4], "big")
  for draw in range(_DRAWS):
    rng = np.random.default_rng([order.seed, own, draw])
    # Other targets by turns: in a short context there may be no room for the evidence.
    target = aimed_at(rng, replace(order, number=order.number + draw))
    found = finish(corpus, rng, order, draft(corpus, asked, documents, target), target, length)
    if isinstance(found, Example):
      return _with_past(found, asked), dropped
    dropped.append(f"{order.task}/{asked.provenance['kind']}/{found}")
  return None, dropped


def draft(corpus: Corpus, asked: Example, documents: Sequence[int], target: int) -> Draft:
  _, starts = laid_out([corpus.documents[number] for number in documents])
  where = {corpus.documents[number].id: (number, start) for number, start in zip(documents, starts)}
  evidence = []
  for span in asked.evidence:
    number, start = where[span.document]
    evidence.append((number, span.start - start, span.end - start))
  holding = sorted({number for number, _, _ in evidence})
  whole = [number for number in holding if sum(corpus.tokens[number]) <= target // _WHOLE]

  def accept(document: int, sections: Sequence[int]) -> bool:
    said = "\n".join(corpus.text(Place(document, section)) for section in sections)
    return not gives_away(f"{corpus.names[document]}\n{said}", asked.answer)

  def ask(context: Context) -> Asked:
    return Asked(asked.question, asked.answer, (asked.answer,), {})

  return Draft(
    kind=asked.provenance["kind"],
    evidence=evidence,
    ask=ask,
    query=asked.question,
    scopes=[(number, 0, len(corpus.documents[number].text)) for number in whole],
    accept=accept,
  )


def _with_past(example: Example, asked: Example) -> Example:
  past = asked.provenance
  kept = {name: past[name] for name in ("generator", "kind", "round", "models", "prompts", "checks")}
  return replace(
    example, provenance={**example.provenance, **kept, "model": past["models"]["proposer"], "proposal": asked.id}
  )

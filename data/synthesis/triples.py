"""Facts out of documents by a model, as triples whose every part can be pointed at (section 3, knowledge graphs).

A model proposes (head, relation, tail) with the passage that says so. Nothing is believed: the passage has to stand in
the document word for word, and both entities inside the passage.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qwenlong_jax.data.documents import Document
from qwenlong_jax.data.prompts import Prompts
from qwenlong_jax.data.synthesis.proposals import find, gives_orders
from qwenlong_jax.data.verification_by_model import Rejection
from qwenlong_jax.llm import Completion, Sampling, ask, fenced
from qwenlong_jax.llm.structured import Schema, ask_json

_GREEDY = Sampling(temperature=0.0, top_p=None)
_LONGEST_ENTITY = 12
_LONGEST_RELATION = 8
_PRONOUNS = re.compile(
  r"he|she|it|they|him|hers?|them|this|that|these|those|his|its|theirs?|we|us|our|you|i|who|which", re.IGNORECASE
)


class Stated(Schema):
  """A triple as the model writes it."""

  head: str
  relation: str
  tail: str
  quote: str


class Extraction(Schema):
  triples: tuple[Stated, ...]


@dataclass(frozen=True)
class Triple:
  """Characters [start, end) of the document's text say that `relation` holds between `head` and `tail`.

  `head_start` and `tail_start` are where the two stand in the text, inside that passage.
  """

  head: str
  relation: str
  tail: str
  document: str
  start: int
  end: int
  head_start: int
  tail_start: int
  model: str = ""
  prompt: str = ""


@dataclass(frozen=True)
class Extracted:
  """The triples in the order of the documents, and what was rejected; `reasons` counts it."""

  triples: tuple[Triple, ...]
  rejected: tuple[Rejection, ...]

  @property
  def reasons(self) -> dict[str, int]:
    return dict(sorted(Counter(one.reason for one in self.rejected).items()))


def extract(
  documents: Sequence[Document],
  engine: Completion,
  prompts: Prompts,
  count: int = 20,
  sampling: Sampling = _GREEDY,
) -> Extracted:
  """At most `count` triples out of each document.

  Reasons for a rejection: "extractor_" and a failure of the reply or of its JSON (the whole document's), "empty",
  "long", "pronoun", "same_entity", "quote_not_found", "instruction", "head_not_in_quote", "tail_not_in_quote",
  "repeated", "too_many".
  """
  told = [
    prompts.triples.fill(documents=fenced([f"{one.title}\n\n{one.text}".strip()]), count=count) for one in documents
  ]
  replies = ask_json(engine, [ask(prompt, sampling=sampling) for prompt in told], Extraction)
  triples: list[Triple] = []
  rejected: list[Rejection] = []
  for document, reply in zip(documents, replies):
    if reply.value is None:
      rejected.append(Rejection(document.id, f"extractor_{reply.failure}", reply.detail))
      continue
    good, bad = _checked(reply.value.triples, document, count, reply.model, prompts.triples.version)
    triples += good
    rejected += bad
  return Extracted(tuple(triples), tuple(rejected))


def _checked(
  stated: Sequence[Stated], document: Document, count: int, model: str, prompt: str
) -> tuple[list[Triple], list[Rejection]]:
  good: dict[tuple[str, str, str], Triple] = {}
  bad = []
  for number, one in enumerate(stated):
    triple = _located(one, document, model, prompt)
    if isinstance(triple, Triple):
      key = (triple.head.casefold(), triple.relation.casefold(), triple.tail.casefold())
      reason = "repeated" if key in good else "too_many" if len(good) == count else ""
      if not reason:
        good[key] = triple
    else:
      reason = triple
    if reason:
      detail = f"({one.head} | {one.relation} | {one.tail}) {one.quote!r}"
      bad.append(Rejection(f"{document.id}/{number}", reason, detail[:300]))
  return list(good.values()), bad


def _located(stated: Stated, document: Document, model: str, prompt: str) -> Triple | str:
  """Where the triple stands in the document, or why it does not count."""
  head, relation, tail = (part.strip() for part in (stated.head, stated.relation, stated.tail))
  if reason := _wording(head, relation, tail):
    return reason
  place = find(document.text, stated.quote)
  if place is None:
    return "quote_not_found"
  if gives_orders(document.text, *place):
    return "instruction"
  passage = document.text[slice(*place)]
  first, last = _word(passage, head), _word(passage, tail)
  if first is None or last is None:
    return "head_not_in_quote" if first is None else "tail_not_in_quote"
  return Triple(head, relation, tail, document.id, *place, place[0] + first, place[0] + last, model, prompt)


def _wording(head: str, relation: str, tail: str) -> str:
  if not (head and relation and tail):
    return "empty"
  if max(len(head.split()), len(tail.split())) > _LONGEST_ENTITY or len(relation.split()) > _LONGEST_RELATION:
    return "long"
  if _PRONOUNS.fullmatch(head) or _PRONOUNS.fullmatch(tail):
    return "pronoun"
  return "same_entity" if head.casefold() == tail.casefold() else ""


def _word(passage: str, entity: str) -> int | None:
  """Where an entity stands in a passage as whole words: "art" is not in "party"."""
  place = find(passage, entity, whole=True)
  return place[0] if place else None

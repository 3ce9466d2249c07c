"""Facts out of documents by a model, as triples whose every part can be pointed at (section 3, knowledge graphs).

A model proposes (head, relation, tail) with the passage that says so. Nothing is believed: the passage has to stand in
the document word for word, and both entities inside the passage; and who sees passages and statements alone has to find
that the ones make the others.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qwenlong_jax.data.documents import Document
from qwenlong_jax.data.prompts import Prompts
from qwenlong_jax.data.synthesis.proposals import find, gives_orders, told
from qwenlong_jax.data.verification_by_model import Rejection
from qwenlong_jax.llm import Completion, Sampling, ask, fenced
from qwenlong_jax.llm.structured import Schema, ask_json

_GREEDY = Sampling(temperature=0.0, top_p=None)
_LONGEST_ENTITY = 12
_LONGEST_RELATION = 8
_BOUND = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s|\n\s*\n")  # behind a sentence
_BRACKETED = re.compile(r"(.+?)\s+\(([A-Z][A-Za-z.&-]{1,9})\)")
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


class Verdicts(Schema):
  """Numbers of lines, counted from 1."""

  unstated: tuple[int, ...]
  shared: tuple[int, ...]


@dataclass(frozen=True)
class Triple:
  """Characters [start, end) of the document's text say that `relation` holds between `head` and `tail`.

  `head_start` and `tail_start` are where the two stand in the text, inside that passage. `shared`: its sentence says
  the same of another entity too, so that nobody can be asked for the one.
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
  shared: bool = False


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
  verifier: Completion,
  prompts: Prompts,
  count: int = 20,
  sampling: Sampling = _GREEDY,
) -> Extracted:
  """At most `count` triples out of each document.

  Reasons for a rejection: "extractor_" and a failure of the reply or of its JSON (the whole document's), "empty",
  "long", "pronoun", "same_entity", "quote_not_found", "instruction", "head_not_in_quote", "tail_not_in_quote",
  "repeated", "too_many"; "verifier_" and a failure or "unknown", the number of no line (the whole document's),
  "unstated".
  """
  asked = [prompts.triples.fill(documents=fenced([told(one)]), count=count) for one in documents]
  replies = ask_json(engine, [ask(prompt, sampling=sampling) for prompt in asked], Extraction)
  found: list[tuple[Document, list[Triple]]] = []
  rejected: list[Rejection] = []
  for document, reply in zip(documents, replies):
    if reply.value is None:
      rejected.append(Rejection(document.id, f"extractor_{reply.failure}", reply.detail))
      continue
    good, bad = _checked(reply.value.triples, document, count, reply.model, prompts.triples.version)
    found += [(document, good)] if good else []
    rejected += bad
  triples, unstated = _confirmed(found, verifier, prompts, sampling)
  return Extracted(tuple(triples), (*rejected, *unstated))


def _confirmed(
  found: Sequence[tuple[Document, Sequence[Triple]]], verifier: Completion, prompts: Prompts, sampling: Sampling
) -> tuple[list[Triple], list[Rejection]]:
  """The triples that their passages state; one request for each document, of which it sees the passages' sentences."""
  asked = [prompts.stated.fill(texts=fenced([_statements(*of_one)], "text")) for of_one in found]
  good: list[Triple] = []
  bad = []
  replies = ask_json(verifier, [ask(prompt, sampling=sampling) for prompt in asked], Verdicts)
  for (document, triples), reply in zip(found, replies):
    if reply.value is None:
      bad.append(Rejection(document.id, f"verifier_{reply.failure}", reply.detail))
      continue
    # Who counts from 0, or other lines, means others than it says.
    if strange := {*reply.value.unstated, *reply.value.shared} - set(range(1, len(triples) + 1)):
      bad.append(Rejection(document.id, "verifier_unknown", f"{sorted(strange)} of {len(triples)} lines"))
      continue
    for number, one in enumerate(triples, start=1):
      if number in reply.value.unstated:
        bad.append(Rejection(document.id, "unstated", f"({one.head} | {one.relation} | {one.tail})"))
      else:
        good.append(replace(one, shared=number in reply.value.shared))
  return good, bad


def _statements(document: Document, triples: Sequence[Triple]) -> str:
  """A line for each triple: its number, its passage amid its sentence, what it says."""
  text, lines = document.text, []
  bounds = [0, *(match.end() for match in _BOUND.finditer(text)), len(text)]
  for number, one in enumerate(triples, start=1):
    before = text[max(place for place in bounds if place <= one.start) : one.start]
    after = text[one.end : min(place for place in bounds if place >= one.end)]
    said = f"{before}«{text[one.start : one.end]}»{after} => {one.head} {one.relation} {one.tail}"
    lines.append(f"{number}. {' '.join(said.split())}")
  return "\n".join(lines)


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
  head, tail, relation = _spelt_out(stated.head.strip()), _spelt_out(stated.tail.strip()), stated.relation.strip()
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


def _spelt_out(name: str) -> str:
  """A name without its abbreviation in brackets behind it: a document need not repeat that, nor an answer."""
  match = _BRACKETED.fullmatch(name)
  if not match:
    return name
  letters = iter(match[1].casefold())
  return match[1] if all(letter in letters for letter in match[2].casefold() if letter.isalpha()) else name


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

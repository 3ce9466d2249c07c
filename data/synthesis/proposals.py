"""A question that a model proposes, and the rules it has to pass; none of them takes a model.

Documents may hold orders ("ignore your instructions and ...") that a proposer follows. The rules look at the result:
evidence that does not stand in the documents, evidence out of a paragraph that gives orders, and a question that gives
its answer away are rejected, whoever wanted them.
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

from rapidfuzz import fuzz, utils

from qwenlong_jax.data.documents import Document
from qwenlong_jax.data.verification_by_model import has_verdict
from qwenlong_jax.llm import unfenced
from qwenlong_jax.llm.structured import Schema
from qwenlong_jax.rewards.rules import rule, tokens
from qwenlong_jax.types import Span

_ORDERS = re.compile(
  r"\b(?:ignore|disregard|forget|override|bypass)\b\W+(?:\w+\W+){0,4}?"
  r"(?:instructions?|prompts?|rules|guidelines|directions|(?:the )?above|everything)\b"
  r"|\b(?:system prompt|jailbreak)\b"
  r"|\byou are (?:now )?an? (?:\w+ )?(?:ai|assistant|chatbot|language model)\b"
  r"|\b(?:write|put|repeat|include|reveal|give away) (?:the|its|your) answers? (?:in|into|inside) the question\b",
  re.IGNORECASE,
)
_SQUASHED = 6
# Characters that one key stands for; each is one character before and after.
_KEYS = str.maketrans("‘’‚‛“”„‟‐‑‒–—―−", "''''" + '"' * 4 + "-" * 7)
_ENDS = ".,;:" + string.whitespace
_IN_BRACKETS = re.compile(r"\w\s+\([^()]*\)$")


class Quote(Schema):
  """`document` counts from 1, in the order in which the documents were shown."""

  document: int
  quote: str


class Proposal(Schema):
  """`fits`: whether it is of the kind that was asked for."""

  fits: bool = True
  question: str
  answer: str
  evidence: tuple[Quote, ...]


@dataclass(frozen=True)
class Rules:
  """What a proposal may be: lengths in words, likeness to earlier questions in percent (rapidfuzz)."""

  longest_question: int = 80
  longest_answer: int = 12
  shortest_quote: int = 3
  most_alike: float = 85.0


@dataclass(frozen=True)
class Ruled:
  """Where the evidence stands in the context, or the first rule that failed and what it saw."""

  evidence: tuple[Span, ...] = ()
  reason: str = ""
  detail: str = ""


def told(document: Document) -> str:
  """A document as a model sees it: under its title, unless it begins with that."""
  opening = document.text.lstrip("# \n")[: len(document.title)]
  return document.text if opening == document.title else f"{document.title}\n\n{document.text}".strip()


def laid_out(documents: Sequence[Document]) -> tuple[str, tuple[int, ...]]:
  """The context, each document under its title, parted by empty lines; and where each document's text starts in it."""
  parts, starts, length = [], [], 0
  for document in documents:
    head = f"{document.title}\n\n" if document.title else ""
    starts.append(length + len(head))
    parts.append(head + document.text)
    length += len(parts[-1]) + 2
  return "\n\n".join(parts), tuple(starts)


def ruled(proposal: Proposal, documents: Sequence[Document], earlier: Sequence[str], rules: Rules) -> Ruled:
  """Applies the rules in order; `earlier` are the questions that it must differ from."""
  answer = proposal.answer.strip()
  reason, detail = wording(proposal.question.strip(), answer, rules)
  if not reason and says_more(answer):
    reason, detail = "unscorable", f"who leaves out what {answer!r} says in brackets, is not wrong"
  if not reason and (twin := alike(proposal.question, earlier, rules.most_alike)):
    reason, detail = "near_duplicate", twin
  return Ruled((), reason, detail) if reason else _evidence(proposal, documents, rules)


def wording(question: str, answer: str, rules: Rules) -> tuple[str, str]:
  """What is wrong with the words of a question and its answer, and a line on it; ("", "") if nothing is.

  Reasons: "empty", "instruction", "long_question", "long_answer", "unscorable", "answer_in_question".
  """
  if not question or not answer:
    return "empty", f"{question=} {answer=}"
  if any(has_verdict(text) or _ORDERS.search(text) for text in (question, answer)):
    return "instruction", f"{question[:200]} / {answer[:200]}"
  if len(question.split()) > rules.longest_question:
    return "long_question", f"{len(question.split())} words"
  if len(answer.split()) > rules.longest_answer:
    return "long_answer", f"{len(answer.split())} words"
  score = rule(answer, answer)
  if score.reward != 1.0:
    return "unscorable", f"{answer!r} does not even state itself ({score.failure or 'wrong'})"
  if gives_away(question, answer):
    return "answer_in_question", f"{answer!r} in {question!r}"
  return "", ""


def gives_away(question: str, answer: str) -> bool:
  """Whether the words of the answer stand in the question in a row, or its letters do, however they are spaced."""
  asked, wanted = tokens(question), tokens(answer)
  if wanted and any(asked[i : i + len(wanted)] == wanted for i in range(len(asked) - len(wanted) + 1)):
    return True
  letters = "".join(wanted)
  return len(letters) >= _SQUASHED and letters in "".join(asked)


def says_more(answer: str) -> bool:
  """Whether an answer ends with something in brackets, such as an abbreviation: of others nobody would say it."""
  return bool(_IN_BRACKETS.search(answer))


def alike(question: str, earlier: Sequence[str], most: float) -> str:
  """The first earlier question that this one is too much like, whatever the order of the words; "" if there is none."""
  for other in earlier:
    if fuzz.token_sort_ratio(question, other, processor=utils.default_process) > most:
      return other
  return ""


def find(text: str, quote: str, whole: bool = False) -> tuple[int, int] | None:
  """Where `quote` stands in `text`, word for word; only white space and what models write otherwise when they copy may
  differ: curly and straight quotation marks, kinds of dashes, a full stop or dots around it, our marks of quoted
  material. With `whole`, it neither begins nor ends inside a word.
  """
  copied = unfenced(quote).translate(_KEYS).replace("…", "...").strip().removeprefix("...")
  copied = re.sub("-+", "-", copied.rstrip(_ENDS))
  loosely = _written(copied, whole).replace(r"\-", "-+")
  for pattern, where in ((_written(quote, whole), text), (loosely, text.translate(_KEYS))):
    if pattern and (match := re.search(pattern, where)):
      return match.span()
  return None


def _written(quote: str, whole: bool) -> str:
  pattern = r"\s+".join(map(re.escape, quote.split()))
  return rf"(?<!\w){pattern}(?!\w)" if whole and pattern else pattern


def gives_orders(text: str, start: int, end: int) -> bool:
  """Whether the paragraphs that hold characters [start, end) of a text talk to a model instead of a reader."""
  first = text.rfind("\n\n", 0, start) + 1
  last = text.find("\n\n", end)
  paragraphs = text[first : last if last >= 0 else len(text)]
  return bool(_ORDERS.search(paragraphs)) or has_verdict(paragraphs)


def _evidence(proposal: Proposal, documents: Sequence[Document], rules: Rules) -> Ruled:
  """Reasons: "no_evidence", "short_quote", "quote_not_found", "instruction"."""
  if not proposal.evidence:
    return Ruled((), "no_evidence")
  _, starts = laid_out(documents)
  spans = []
  for piece in proposal.evidence:
    if len(piece.quote.split()) < rules.shortest_quote:
      return Ruled((), "short_quote", piece.quote)
    number = piece.document - 1
    place = find(documents[number].text, piece.quote) if 0 <= number < len(documents) else None
    if place is None:
      return Ruled((), "quote_not_found", f"document {piece.document}: {piece.quote[:200]!r}")
    if gives_orders(documents[number].text, *place):
      return Ruled((), "instruction", f"document {piece.document}: {piece.quote[:200]!r}")
    spans.append(Span(documents[number].id, starts[number] + place[0], starts[number] + place[1]))
  return Ruled(tuple(sorted(set(spans), key=lambda span: (span.start, span.end))))

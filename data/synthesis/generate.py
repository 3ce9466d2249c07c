"""One sample of one task from a corpus: drafted, put into a context, asked, checked. A pure function of its number."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qwenlong_jax.data import verification
from qwenlong_jax.data.synthesis import corpus_tables, dialogue, knowledge_graph, multiple_choice, reading
from qwenlong_jax.data.synthesis.context import Asked, Context, Draft, compose
from qwenlong_jax.data.synthesis.corpus import Corpus
from qwenlong_jax.types import TASKS, Example, Span

VERSION = 1
CONVERSATION = "conversation"  # the document of what is said between the pages
FRAME = "frame"  # that of the pages' titles, and of headings said again
KINDS = {
  "multiple_choice": multiple_choice.KINDS,
  "multi_hop": knowledge_graph.KINDS,
  "reading_comprehension": reading.KINDS,
  "dialogue_memory": dialogue.KINDS,
  "corpus_numeric": tuple(kind for kind in corpus_tables.KINDS if kind != "ranking"),
}
TOLERANCE = 1.25  # times its target, which counts sections alone, a sample may be long; never longer than all targets
_DRAWS = 12


@dataclass(frozen=True)
class Order:
  """What a sample is to be: `number` counts the samples of a task and corpus; `targets` are lengths in tokens."""

  task: str
  number: int
  seed: int
  targets: tuple[int, ...]


def sample(corpus: Corpus, order: Order, length: Callable[[str], int]) -> tuple[Example | None, list[str]]:
  """(the example, why drafts before it were dropped); None if none of a number of drafts was kept."""
  dropped: list[str] = []
  for draw in range(_DRAWS):
    rng = np.random.default_rng([order.seed, TASKS.index(order.task), _number(corpus), order.number, draw])
    kind = _kind(corpus, order, draw)
    target = aimed_at(rng, order)
    draft = make(rng, corpus, order.task, kind, target, order.number)
    found = "no_draft" if draft is None else finish(corpus, rng, order, draft, target, length)
    if isinstance(found, Example):
      return found, dropped
    dropped.append(f"{order.task}/{kind}/{found}")
  return None, dropped


def _number(corpus: Corpus) -> int:
  return int.from_bytes(hashlib.sha256(f"{corpus.split}/{corpus.domain}/{corpus.name}".encode()).digest()[:4], "big")


def _kind(corpus: Corpus, order: Order, draw: int) -> str:
  kinds = [kind for kind in KINDS[order.task] if kind != "needle" or corpus.domain == "dialogue"]
  return kinds[(order.number + draw) % len(kinds)]


def aimed_at(rng: np.random.Generator, order: Order) -> int:
  """Around one of the targets, by turns: at most it, at least three quarters of it."""
  return int(order.targets[order.number % len(order.targets)] * (0.75 + 0.25 * rng.random()))


def make(
  rng: np.random.Generator, corpus: Corpus, task: str, kind: str, target: int, number: int
) -> Draft | None:
  """A draft of the task's kind; `number` is the sample's."""
  match task:
    case "multiple_choice":
      return multiple_choice.draft(rng, corpus, kind, target, number)
    case "multi_hop":
      return knowledge_graph.draft(rng, corpus, kind, number)
    case "reading_comprehension":
      return reading.draft(rng, corpus, kind, number)
    case "dialogue_memory":
      return dialogue.draft(rng, corpus, kind)
    case "corpus_numeric":
      return corpus_tables.draft(rng, corpus, kind, target)
  raise ValueError(f"{task=} is none of {', '.join(TASKS)}")


def finish(
  corpus: Corpus, rng: np.random.Generator, order: Order, draft: Draft, target: int, length: Callable[[str], int]
) -> Example | str:
  """The example that a draft becomes in a context of about `target` tokens, or in a word why it does not."""
  context = compose(corpus, rng, draft, target)
  if context is None:
    return "does_not_fit"
  asked = draft.ask(context)
  if asked is None:
    return "context_does_not_bear_it"
  tokens = length(context.text) + length(asked.question)
  if not target / 2 <= tokens <= min(TOLERANCE * target, max(order.targets)):
    return "length"
  evidence = _evidence(corpus, draft, asked, context)
  if evidence is None:
    return "evidence_is_cut"
  spans, sources = evidence
  identity = hashlib.sha256(f"{asked.question}\n{asked.answer}\n{context.text}".encode()).hexdigest()[:16]
  example = Example(
    id=f"{order.task}/{corpus.split}/{corpus.domain}/{identity}",
    task=order.task,
    context=context.text,
    question=asked.question,
    answer=asked.answer,
    reasoning=asked.reasoning,
    evidence=spans,
    provenance=_provenance(corpus, order, draft, asked, tokens, target) | {"documents": sources},
  )
  return verification.reason_to_drop(example) or example


def _evidence(
  corpus: Corpus, draft: Draft, asked: Asked, context: Context
) -> tuple[tuple[Span, ...], list[dict[str, Any]]] | None:
  """Where the evidence stands in the context, and in which documents' characters."""
  drafted = [context.find(*place) for place in dict.fromkeys(draft.evidence)]
  stated, framed = [], []
  for where in [*drafted, *asked.evidence]:
    if where is None:
      return None
    origin = context.origin(*where)
    if origin is None:
      framed.append(Span(FRAME, *where))
    else:
      stated.append((where, origin))
  for n in draft.heard:
    first, last = context.talk[n]
    if draft.quoted:
      document, start, end = draft.quoted[n]
      stated.append(((last - (end - start), last), draft.quoted[n]))
      last -= end - start
    framed.append(Span(CONVERSATION, first, last))
  spans, sources = [], []
  for where, (document, start, end) in stated:
    found = corpus.documents[document]
    spans.append(Span(found.id, *where))
    sources.append({"id": found.id, "characters": [start, end], **asdict(found.source)})
  return (*spans, *framed), sources


def _provenance(
  corpus: Corpus, order: Order, draft: Draft, asked: Asked, tokens: int, target: int
) -> dict[str, Any]:
  return {
    "source": f"{corpus.domain} documents",
    "generator": f"{order.task}/{draft.kind}/{VERSION}",
    "domain": corpus.domain,
    "split": corpus.split,
    "kind": draft.kind,
    "seed": [order.seed, order.number],
    "target": target,
    "tokens": tokens,
    "program": asked.program,
    "candidates": list(asked.candidates),
    "reward": "sequence" if draft.kind in dialogue.DENSE else "rule",
    "model": "",
  }


def capable(corpus: Corpus, task: str, targets: Sequence[int], tries: int = 12) -> bool:
  """Whether any of a few drafts of a task comes about, at all lengths by turns."""
  for number in range(tries):
    order = Order(task, number, 0, tuple(targets))
    rng = np.random.default_rng([number, TASKS.index(task)])
    target = aimed_at(rng, order)
    draft = make(rng, corpus, task, _kind(corpus, order, 0), target, number)
    if draft is not None and compose(corpus, rng, draft, target) is not None:
      return True
  return False

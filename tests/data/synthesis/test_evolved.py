"""A question about a few documents among distractors: evidence at its place, the answer nowhere else."""

import numpy as np

from qwenlong_jax.data.documents import Document
from qwenlong_jax.data.synthesis.context import compose
from qwenlong_jax.data.synthesis.corpus import Corpus
from qwenlong_jax.data.synthesis.evolved import draft, groups, place
from qwenlong_jax.data.synthesis.generate import Order
from qwenlong_jax.data.synthesis.proposals import laid_out
from qwenlong_jax.rewards.rules import tokens
from qwenlong_jax.types import Example, Span


def asked_of(documents: list[Document], number: int, quote: str, answer: str) -> Example:
  """About the document `number` of a group, as the trio would."""
  context, starts = laid_out(documents)
  at = starts[number] + documents[number].text.index(quote)
  past = {"generator": "self_evolving/1", "kind": "reading", "round": 2, "models": {"proposer": "writer"}}
  return Example(
    id="self_evolving/0/group/2/0",
    task="reading_comprehension",
    context=context,
    question=f"What does {documents[number].title} say of it?",
    answer=answer,
    evidence=(Span(documents[number].id, at, at + len(quote)),),
    provenance=past | {"prompts": {}, "checks": {"solved": {"right": 1, "samples": 4}}},
  )


def test_groups_are_neighbours_and_leave_out_what_is_too_long() -> None:
  lengths = [[5, 5], [20], [3], [4, 4, 4], [10], [1], [2], [9], [30]]
  assert sorted(groups(lengths, 2, 10, 9, seed=0)) == [[0, 2], [4, 5], [6, 7]]
  two = groups(lengths, 2, 10, 2, seed=0)
  assert len(two) == 2 and two == groups(lengths, 2, 10, 9, seed=0)[:2]
  assert groups(lengths, 2, 12, 9, seed=0) != groups(lengths, 2, 10, 9, seed=0)
  assert groups(lengths, 8, 10, 9, seed=0) == groups(lengths, 2, 10, 0, seed=0) == []


def length(text: str) -> int:
  return len(text) // 4 + 1


def test_the_evidence_stands_in_the_context_and_the_answer_on_no_other_page(countries: Corpus) -> None:
  group = [3, 4, 5]
  documents = [countries.documents[number] for number in group]
  quote = next(line for line in documents[1].text.split("\n") if line.startswith("Climate: "))
  # A word that a third of all countries state: most pages would hold it.
  answer = quote.removeprefix("Climate: ")
  asked = asked_of(documents, 1, quote, answer)
  for number in range(4):
    example, _ = place(countries, asked, group, Order(asked.task, number, 0, (2000, 4000)), length)
    assert example is not None
    (span,) = example.evidence
    assert (span.document, example.context[span.start : span.end]) == (documents[1].id, quote)
    pages = example.context.split("=== ")[1:]
    assert sum(answer in tokens(page) for page in pages) == 1 and len(pages) > 4
    assert example.provenance["model"] == "writer" and example.provenance["round"] == 2
    assert example.provenance["checks"] == {"solved": {"right": 1, "samples": 4}}
    assert example.provenance["proposal"] == asked.id
    (source,) = example.provenance["documents"]
    start, end = source["characters"]
    assert countries.documents[4].text[start:end] == quote


def test_a_document_no_longer_than_a_page_stays_whole(countries: Corpus) -> None:
  group = [3, 4, 5]
  documents = [countries.documents[number] for number in group]
  quote = next(line for line in documents[1].text.split("\n") if line.startswith("Capital: "))
  asked = asked_of(documents, 1, quote, quote.removeprefix("Capital: "))
  tokens_of_it = sum(countries.tokens[4])
  for target, whole in ((10 * tokens_of_it, True), (10 * tokens_of_it - 1, False)):
    made = draft(countries, asked, group, target)
    context = compose(countries, np.random.default_rng(0), made, target)
    assert context is not None and (documents[1].text in context.text) is whole


def test_where_every_page_holds_the_answer_there_is_no_sample(countries: Corpus) -> None:
  group = [3, 4, 5]
  documents = [countries.documents[number] for number in group]
  asked = asked_of(documents, 1, "## Geography", "people")
  example, dropped = place(countries, asked, group, Order(asked.task, 0, 0, (2000,)), length)
  assert example is None and set(dropped) <= {
    "reading_comprehension/reading/does_not_fit",
    "reading_comprehension/reading/length",
  }

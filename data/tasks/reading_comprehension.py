"""General reading comprehension: how does the sentence end that holds these words?

    Return a copy of the list.     complete: a copy of
    ...                            -> complete: a copy of the list
                                   -> the list

The passages are real documentation; the three words of the question occur once in the whole context, and the answer is
the one to three words from there to the full stop.
"""

from collections.abc import Iterator

import numpy as np

from qwenlong_jax.data.sources import Facts, Passage
from qwenlong_jax.data.tasks.context import Costs, Draft, Page, fill, lines_per_page, pick, shuffled

PHRASE = 3
ANSWER_WORDS = (1, 1, 1, 2, 2, 3)


def draft(rng: np.random.Generator, facts: Facts, costs: Costs, budget: int) -> Draft | None:
  passage = pick(rng, facts.passages)
  place = int(rng.random() * len(passage.sentences))
  sentence = passage.sentences[place]
  words = sentence[:-1].split(" ")
  cut = len(words) - pick(rng, ANSWER_WORDS)
  phrase, answer = " ".join(words[cut - PHRASE : cut]), " ".join(words[cut:])
  size = lines_per_page(budget, costs.line(sentence))
  first = max(0, place - int(rng.random() * size))
  evidence = Page(passage.document, list(passage.sentences[first : max(place + 1, first + size)]), (place - first,))
  if sum(line.count(phrase) for line in evidence.lines) != 1 or answer in phrase:
    return None
  question = f"complete: {phrase}"
  room = budget - costs.line(question) - costs.page(evidence)
  pages = [evidence]
  fill(pages, _others(rng, facts, passage, phrase, size), room, costs)
  if len(pages) == 1:
    return None
  return Draft(
    pages=shuffled(rng, pages),
    question=question,
    answer=answer,
    reasoning=f"{question} {answer}",
    key=phrase,
    used=[sentence],
  )


def _others(rng: np.random.Generator, facts: Facts, passage: Passage, phrase: str, size: int) -> Iterator[Page]:
  """Runs of sentences of other documents, none of them twice and none with the phrase."""
  seen: set[str] = set()
  for _ in range(100 * len(facts.passages)):
    other = pick(rng, facts.passages)
    first = int(rng.random() * len(other.sentences))
    lines = list(other.sentences[first : first + size])
    if other is not passage and seen.isdisjoint(lines) and not any(phrase in line for line in lines):
      seen.update(lines)
      yield Page(other.document, lines)
  raise ValueError(
    f"the {facts.split} split has no passages left to fill a context this long; ask for a smaller budget"
  )

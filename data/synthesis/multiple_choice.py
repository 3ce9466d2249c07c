"""Multiple choice: a question of another kind, with three answers that the context holds too beside the right one."""

import dataclasses

import numpy as np

from qwenlong_jax.data.synthesis import corpus_tables, knowledge_graph, reading
from qwenlong_jax.data.synthesis.context import Asked, Context, Draft
from qwenlong_jax.data.synthesis.corpus import Corpus

KINDS = ("multi_fact", "causal", "ranking", "both")
LETTERS = "ABCD"


def draft(rng: np.random.Generator, corpus: Corpus, kind: str, target: int, number: int) -> Draft | None:
  if kind == "ranking":
    found = corpus_tables.draft(rng, corpus, kind, target)
  elif kind == "both":
    found = reading.draft(rng, corpus, kind, number)
  else:
    found = knowledge_graph.draft(rng, corpus, kind, number)
  if found is None:
    return None
  ask, order = found.ask, rng.random(64)

  def choose(context: Context) -> Asked | None:
    asked = ask(context)
    return None if asked is None else with_options(asked, order)

  return dataclasses.replace(found, ask=choose)


def with_options(asked: Asked, order: np.ndarray) -> Asked | None:
  """`order`: random numbers, by which three wrong candidates are chosen and all are put in order."""
  wrong = [answer for answer in asked.candidates if answer != asked.answer]
  if len(wrong) < len(LETTERS) - 1:
    return None
  chosen = [wrong[n] for n in np.argsort(order[: len(wrong)], kind="stable")[: len(LETTERS) - 1]]
  options = [[asked.answer, *chosen][n] for n in np.argsort(order[-len(LETTERS) :], kind="stable")]
  lines = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options))
  return dataclasses.replace(
    asked,
    question=f"{asked.question}\n{lines}",
    answer=LETTERS[options.index(asked.answer)],
    candidates=tuple(options),
    program=asked.program | {"options": options},
  )


def stem(question: str) -> str:
  """A question without its options, if it has any."""
  return question.split(f"\n({LETTERS[0]}) ")[0]

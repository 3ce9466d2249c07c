"""Five kinds of verifiable questions over facts, for any context length: the recipe's task types.

    examples = generate("multi_hop", "train", count=1000, budget=90, length=count_tokens, seed=0)

Each example draws from its own generator, seeded by (seed, task, split, number): example 7 is the same whether ten or
ten thousand are made. An example is checked before it is handed out: its evidence stands where the spans say, the key
that the question asks for occurs as often as it should (once, or once per statement or row), and it fits the budget,
the worked solution half of it.
"""

from collections.abc import Callable

import numpy as np

from qwenlong_jax.data import sources
from qwenlong_jax.data.tasks import corpus_numeric, dialogue_memory, multi_hop, multiple_choice, reading_comprehension
from qwenlong_jax.data.tasks.context import Costs, Draft, render
from qwenlong_jax.types import TASKS, Example

VERSION = 2
_DRAFT = {
  "multiple_choice": multiple_choice.draft,
  "multi_hop": multi_hop.draft,
  "reading_comprehension": reading_comprehension.draft,
  "dialogue_memory": dialogue_memory.draft,
  "corpus_numeric": corpus_numeric.draft,
}
_SOURCE = {"reading_comprehension": sources.CPYTHON}
_DRAWS = 300


def generate(
  task: str,
  split: str,
  count: int,
  budget: int,
  length: Callable[[str], int] = len,
  seed: int = 0,
  worlds: int = 1,
) -> list[Example]:
  """`count` examples of one task whose context and question together are at most `budget` long.

  Args:
    task: one of types.TASKS.
    split: "train", "validation" or "test": of disjoint countries and documents.
    budget: the length to fill with distractors, in units of `length` (characters by default). What a chat template adds
      comes on top.
    length: counts a text, such as `lambda text: len(tokenizer.encode(text))`. Called once for each line seen and once
      for each example.
    seed: examples of different seeds differ.
    worlds: the examples are dealt to so many worlds, the real one first (see data.sources).

  Raises:
    ValueError: an unknown task or split, no world, or a budget that is too short for the task or too long for the
      split's facts.
  """
  if worlds < 1:
    raise ValueError(f"data.worlds={worlds} must be at least 1, the real one")
  if task not in _DRAFT:
    raise ValueError(f"{task=} is none of {', '.join(TASKS)}")
  costs = Costs(length)
  return [_example(task, split, worlds, costs, budget, seed, number) for number in range(count)]


def _example(task: str, split: str, worlds: int, costs: Costs, budget: int, seed: int, number: int) -> Example:
  world = number % worlds
  facts = sources.load(split, world)
  rng = np.random.default_rng([seed, TASKS.index(task), sources.SPLITS.index(facts.split), number])
  for _ in range(_DRAWS):
    draft = _DRAFT[task](rng, facts, costs, budget)
    if draft is None:
      continue
    context, spans = render(draft.pages)
    if not _holds(draft, context) or not _fits(draft, context, costs, budget):
      continue
    return Example(
      id=f"{task}/{split}/{budget}/{seed}/{number}" + (f"/world {world}" if world else ""),
      task=task,
      context=context,
      question=draft.question,
      answer=draft.answer,
      reasoning=draft.reasoning,
      evidence=spans,
      provenance={
        "source": _SOURCE.get(task, sources.INVENTED if world else sources.GEONAMES),
        "generator": f"{task}/{VERSION}",
        "seed": [seed, number],
        "split": split,
        "worlds": worlds,
        "world": world,
        "budget": budget,
        "facts": draft.used,
      },
    )
  raise ValueError(
    f"no {task} example of the {facts.split} split fits {budget=} after {_DRAWS} draws: "
    "its evidence, two distractors and the question need more; raise the budget"
  )


def _holds(draft: Draft, context: str) -> bool:
  """The key occurs exactly as often as the draft says: there is no second answer in the context."""
  return f"\n{context}".count(draft.key) == draft.times


def _fits(draft: Draft, context: str, costs: Costs, budget: int) -> bool:
  """Within the budget as a whole, and the worked solution with its answer within half of it."""
  solution = sum(map(costs.line, draft.reasoning.split("\n"))) + costs.line(draft.answer)
  return 2 * solution <= budget and costs.length(f"{context}\n\n{draft.question}") <= budget

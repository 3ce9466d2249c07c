"""Rewards: text in, float out."""

from typing import Literal

from qwenlong_jax.rewards.answers import extract
from qwenlong_jax.rewards.rules import EXTRA_WORDS, rule, sequence_ratio
from qwenlong_jax.types import Example, Score

Reward = Literal["rule", "sequence"]


def score(example: Example, response: str, target_reward: Reward = "rule", extra_words: int = EXTRA_WORDS) -> Score:
  """The reward (0 to 1) of one response, "<think> ... </think> answer" with stop tokens removed (section 5.1).

  `example.provenance["reward"]` says which: "rule" (does the answer state the ground truth: a letter for the task
  multiple_choice, a quantity, or text) or "sequence" (the dense ratio of needle tasks); `target_reward` where it says
  nothing. A response without an answer scores 0 and names its failure: "no_think_end", "empty_answer"; an answer that
  commits to no one thing likewise: "no_choice", "many_choices", "no_number", "hedged", "too_long". A wrong answer is no
  failure. Raises ValueError, naming the example, if its ground truth or its kind of reward cannot be used.
  """
  kind = example.provenance.get("reward", target_reward)
  if kind not in ("rule", "sequence"):
    raise ValueError(f"example {example.id!r}: unknown reward {kind!r}; choose 'rule' or 'sequence'")
  if not example.answer.strip():
    raise ValueError(f"example {example.id!r} has an empty answer; drop it or give it a ground truth")
  answer, failure = extract(response)
  if failure:
    return Score(0.0, answer, failure)
  if kind == "sequence":
    return Score(sequence_ratio(example.answer, answer), answer)
  try:
    return rule(example.answer, answer, choices=example.task == "multiple_choice", extra_words=extra_words)
  except ValueError as error:
    raise ValueError(f"example {example.id!r}: {error}") from error

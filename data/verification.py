"""Rules that a sample must pass whoever wrote it: no model is asked."""

from qwenlong_jax import rewards
from qwenlong_jax.rewards import rules
from qwenlong_jax.types import Example

REASONS = ("empty", "evidence", "answer_in_question", "reward", "candidates")


def reason_to_drop(example: Example) -> str:
  """"" if the example holds, else why not, in a word."""
  if not example.answer.strip() or not example.question.strip():
    return "empty"
  if not example.evidence or any(not 0 <= s.start < s.end <= len(example.context) for s in example.evidence):
    return "evidence"
  if example.task != "multiple_choice" and in_question(example):
    return "answer_in_question"
  if reward(example, example.answer) != 1.0:
    return "reward"
  wrong = [answer for answer in example.provenance.get("candidates", ()) if answer != example.answer]
  if example.task != "multiple_choice" and any(reward(example, answer) == 1.0 for answer in wrong):
    return "candidates"
  return ""


def in_question(example: Example) -> bool:
  """Whether the question holds the answer's words in a row."""
  wanted, words = rules.tokens(example.answer), rules.tokens(example.question)
  return any(words[n : n + len(wanted)] == wanted for n in range(len(words) - len(wanted) + 1))


def reward(example: Example, answer: str) -> float:
  return rewards.score(example, f"</think>{answer}").reward

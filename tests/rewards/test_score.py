"""The door: which rule scores which example, and what a failure looks like."""

import pytest

from qwenlong_jax.rewards import score
from qwenlong_jax.types import Example, Score


def example(answer, task="multi_hop", **provenance):
  return Example("e1", task, "context", "question?", answer, provenance=provenance)


@pytest.mark.parametrize(
  "target, answer, wanted",
  [
    (example("Paris"), "The answer is Paris.", Score(1.0, "Paris")),
    (example("Paris"), "London", Score(0.0, "London")),
    (example("B", "multiple_choice"), "The correct answer is (B)", Score(1.0, "B")),
    (example("B", "multiple_choice"), "A, B", Score(0.0, "A, B", "many_choices")),
    (example("B"), "The answer is vitamin B", Score(1.0, "vitamin B")),  # a letter is text in any other task
    (example("1,234", "corpus_numeric"), "1234", Score(1.0, "1234")),
    (example("1,234", "corpus_numeric"), "none", Score(0.0, "none", "no_number")),
    (example("abcd", "dialogue_memory", reward="sequence"), "bcde", Score(0.75, "bcde")),
    (example("abcd", "dialogue_memory", reward="rule"), "bcde", Score(0.0, "bcde")),
    (example("abcd", "dialogue_memory"), "bcde", Score(0.0, "bcde")),
  ],
)
def test_an_example_is_scored_by_its_own_rule(target, answer, wanted):
  assert score(target, f"<think> Paris? 7? </think> {answer}") == wanted


def test_the_kind_of_reward_is_the_examples_own_before_the_callers():
  response = "</think>bcde"
  assert score(example("abcd"), response, "sequence").reward == 0.75
  assert score(example("abcd", reward="rule"), response, "sequence").reward == 0.0


@pytest.mark.parametrize("reward", ["rule", "sequence"])
@pytest.mark.parametrize(
  "response, failure",
  [("<think> Paris", "no_think_end"), ("Paris", "no_think_end"), ("<think> Paris </think> ", "empty_answer")],
)
def test_a_response_without_an_answer_is_a_counted_zero(reward, response, failure):
  assert score(example("Paris", reward=reward), response) == Score(0.0, "", failure)


def test_the_thought_earns_nothing():
  assert score(example("Paris"), "<think> Paris, surely </think> London").reward == 0


def test_the_limit_on_length_is_the_callers():
  response = "</think>" + "word " * 20 + "Paris"
  assert score(example("Paris"), response).failure == "too_long"
  assert score(example("Paris"), response, extra_words=20).reward == 1


@pytest.mark.parametrize(
  "broken, words",
  [
    (example(""), "empty answer"),
    (example(" \n"), "empty answer"),
    (example("", reward="sequence"), "empty answer"),
    (example("Paris", "multiple_choice"), "'Paris'"),
    (example("Paris", reward="judge"), "'judge'"),
  ],
)
def test_an_example_that_cannot_be_scored_is_named_even_if_the_response_failed(broken, words):
  with pytest.raises(ValueError, match=rf"'e1'.*{words}"):
    score(broken, "</think> A")

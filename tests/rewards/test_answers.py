"""Where a response's answer begins, and what it states."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_jax.rewards.answers import extract, statements


@pytest.mark.parametrize(
  "response, wanted",
  [
    ("<think> a </think> Paris", ("Paris", "")),
    ("a </think>\n\nParis\n", ("Paris", "")),
    ("<think> I write </think> too early </think> Rome", ("Rome", "")),
    ("<think> never done", ("", "no_think_end")),
    ("Paris", ("", "no_think_end")),
    ("", ("", "no_think_end")),
    ("<think> a </think> Paris <think> wait", ("", "no_think_end")),
    ("<think> a </think>", ("", "empty_answer")),
    ("<think> a </think> \n\t ", ("", "empty_answer")),
    ("<think> a < /think> Paris", ("", "no_think_end")),
  ],
)
def test_the_answer_follows_the_last_thought(response, wanted):
  assert extract(response) == wanted


@given(st.text(), st.text(alphabet=st.characters(exclude_characters="<>")))
def test_whatever_was_thought_the_answer_is_what_follows(thought, answer):
  got, failure = extract(f"<think>{thought}</think>{answer}")
  assert (got, failure) == (answer.strip(), "" if answer.strip() else "empty_answer")


@pytest.mark.parametrize(
  "answer, wanted",
  [
    ("Paris", []),
    ("The answer is Paris.", ["Paris"]),
    ("After reading.\n**Answer:** Paris\nBye", ["Paris"]),
    ("Therefore, the answer is (Paris)", ["(Paris)"]),
    ("The correct answer is (B)", ["(B)"]),
    ("The correct option is: B.", ["B"]),
    ("The answer to the question is 42", ["42"]),
    ("The answer is St. Louis.", ["St. Louis"]),
    ("The answer is:\n\n3.14\nbecause", ["3.14"]),
    ("The answer is A. The answer is B.", ["A", "B"]),
    ("The wrong answer is A; the correct answer is C", ["C"]),
    ("The final answer is $\\boxed{\\text{Paris}}$.", ["Paris"]),
    (r"\boxed{1{,}000} and \boxed{f(x) = {y}}", ["1{,}000", "f(x) = {y}"]),
    (r"so \boxed{42 and then nothing", []),
    (r"\boxed{\boxed{42}}, or \boxed{ what, \boxed{43}", ["42", "43"]),
    ("The answer is \\boxed{}. The answer is 5", ["5"]),
    ("The answer is", []),
    ("What answer isolates it?", []),
  ],
)
def test_statements_are_found_in_order(answer, wanted):
  assert statements(answer) == wanted


@given(st.text())
def test_any_text_can_be_read(text):
  assert all(s == s.strip() and s for s in statements(text))

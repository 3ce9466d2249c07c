"""Shortcuts find what they are to find in contexts made by hand, and only what is above chance is marked."""

from dataclasses import replace

import benchmark_shortcuts as shortcuts
import pytest

CONTEXT = """=== Alba ===
The capital is Ort. Pell is near, and Quill.

[...]

Pell has 12 towers.

=== Bero ===
The largest lake of all is found by Quill, and it is deep.

=== Ceda ===
Nothing but Pell, with 1,034 people.
"""


def asked(question="Where is the largest lake?", options=False, kind="hop", right="Quill", split="test"):
  candidates = ["Ort", "Pell", "Quill"]
  program = {"kind": kind} | ({"options": candidates} if options else {})
  provenance = {"kind": kind, "program": program, "candidates": candidates, "reward": "rule"}
  answer = "ABC"[candidates.index(right)] if options else right
  record = {"task": "t", "context": CONTEXT, "question": question, "answer": answer, "provenance": provenance}
  return shortcuts.Sample.of(split, record)


def test_each_shortcut_finds_its_candidate():
  sample = asked()
  assert shortcuts.nearest(sample) == "Quill"
  assert shortcuts.last_number(sample) == "1,034"
  assert shortcuts.most_frequent(sample) == "Pell"
  assert shortcuts.last_candidate(sample) == "Pell"
  assert shortcuts.most_gaps(sample) == "Ort"
  question = "Is Pell there?\n(A) Ort\n(B) Pell\n(C) Quill"
  assert shortcuts.shared_words(asked(question, options=True)) == "Pell"


def test_an_option_is_right_as_text_and_chance_is_one_of_the_candidates():
  sample = asked(options=True)
  assert [sample.score(candidate) for candidate in sample.candidates] == [0, 0, 1]
  assert sample.chance() == pytest.approx(1 / 3)


def test_a_question_without_candidates_is_left_out():
  written = replace(asked(kind="viewpoint"), candidates=("Quill",))
  assert {row["kind"] for row in shortcuts.measured([asked(), written])} == {"hop", "all"}


def test_the_usual_answer_is_learnt_from_train_and_asked_elsewhere():
  train = [asked(options=True, right="Pell", split="train") for _ in range(3)]
  rows = shortcuts.measured([*train, asked(options=True, right="Pell")])
  (alone,) = (row for row in rows if row["shortcut"] == "question alone" and row["kind"] == "hop")
  assert (alone["samples"], alone["score"]) == (1, 1.0)


def test_only_what_is_above_chance_by_its_interval_is_marked():
  low, high = shortcuts.interval(0.5, 100)
  assert (low, high) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # Wilson's, as tables give it
  half = shortcuts._row("t", "k", "s", [(1.0, 0.25)] * 50 + [(0.0, 0.25)] * 50)
  assert half["above"] and "!" in shortcuts._cell(half)
  assert not shortcuts._row("t", "k", "s", [(1.0, 0.25), (0.0, 0.25)])["above"]

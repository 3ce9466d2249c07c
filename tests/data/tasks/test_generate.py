import itertools
import unicodedata

import pytest

from qwenlong_jax.data import sources, tasks
from qwenlong_jax.rewards.rules import rule
from qwenlong_jax.types import TASKS

EVERY = [(task, split) for task in TASKS for split in sources.SPLITS]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("budget", [80, 100, 300, 2000])
def test_contexts_fill_the_budget_of_tokens_and_never_exceed_it(task, budget, count_tokens):
  made = tasks.generate(task, "train", 15, budget, count_tokens, seed=1)
  lengths = [count_tokens(f"{e.context}\n\n{e.question}") for e in made]
  assert max(lengths) <= budget
  assert sum(lengths) / len(lengths) > (0.8 if budget < 200 else 0.92) * budget


@pytest.mark.parametrize(("task", "split"), EVERY)
def test_evidence_stands_where_the_spans_say_in_several_documents(task, split):
  for e in tasks.generate(task, split, 50, 600, len, seed=2):
    assert unicodedata.is_normalized("NFC", e.context)
    assert e.context.count("\n\n") >= 1
    assert e.evidence
    said = [e.context[span.start : span.end] for span in e.evidence]
    shown = e.context.split("\n")
    assert all(text in shown and text in e.provenance["facts"] for text in said)


@pytest.mark.parametrize(("task", "split"), EVERY)
def test_the_reward_rule_accepts_every_truth(task, split):
  for e in tasks.generate(task, split, 200, 400, len, seed=3):
    assert rule(e.answer, e.answer, choices=task == "multiple_choice").reward == 1, e


@pytest.mark.parametrize("task", TASKS)
def test_the_worked_solution_ends_in_the_answer(task):
  for e in tasks.generate(task, "train", 100, 400, len, seed=4):
    assert e.answer in e.reasoning.rsplit("\n", 1)[-1] or (task == "corpus_numeric" and e.answer in e.reasoning)


@pytest.mark.parametrize("task", TASKS)
def test_an_example_depends_on_its_seed_and_number_alone(task):
  few, many = tasks.generate(task, "test", 5, 400, len, seed=5), tasks.generate(task, "test", 9, 400, len, seed=5)
  assert few == many[:5]
  assert few != tasks.generate(task, "test", 5, 400, len, seed=6)
  assert len({e.id for e in many}) == 9


def test_contexts_of_different_splits_share_no_place():
  made = {split: tasks.generate("multi_hop", split, 100, 400, len, seed=7) for split in sources.SPLITS}
  documents = {
    s: {line.partition(":")[0] for e in found for line in e.context.split("\n")} for s, found in made.items()
  }
  for one, other in itertools.combinations(sources.SPLITS, 2):
    assert not documents[one] & documents[other] - {""}


def test_provenance_says_how_to_make_the_example_again():
  example = tasks.generate("multi_hop", "train", 4, 400, len, seed=8)[3]
  origin = example.provenance
  seed, number = origin["seed"]
  assert tasks.generate("multi_hop", origin["split"], number + 1, origin["budget"], len, seed)[number] == example
  assert (origin["generator"], origin["source"]) == ("multi_hop/2", sources.GEONAMES)
  invented = tasks.generate("multi_hop", "train", 4, 400, len, seed=8, worlds=3)[2]
  again = tasks.generate("multi_hop", "train", 4, 400, len, seed=8, worlds=invented.provenance["worlds"])
  assert again[2] == invented and invented.provenance["source"] == sources.INVENTED


@pytest.mark.parametrize("task", TASKS)
def test_examples_are_dealt_to_worlds_of_which_the_first_is_real(task):
  alone = tasks.generate(task, "train", 6, 300, len, seed=8)
  dealt = tasks.generate(task, "train", 6, 300, len, seed=8, worlds=3)
  assert [e.provenance["world"] for e in dealt] == [0, 1, 2, 0, 1, 2]
  for number in (0, 3):
    assert (dealt[number].context, dealt[number].answer) == (alone[number].context, alone[number].answer)
  assert len({e.id for e in alone + dealt}) == 10
  if task != "reading_comprehension":  # Its documents are the same in every world.
    assert not {e.context for e in dealt[1:3]} & {e.context for e in alone}


def test_no_world_is_refused():
  with pytest.raises(ValueError, match=r"data.worlds=0 must be at least 1, the real one"):
    tasks.generate("multi_hop", "train", 1, 300, worlds=0)


def test_a_budget_too_short_is_named():
  with pytest.raises(ValueError, match=r"no multi_hop example of the train split fits budget=20.*raise the budget"):
    tasks.generate("multi_hop", "train", 1, 20)


def test_a_budget_beyond_the_facts_is_named():
  with pytest.raises(ValueError, match=r"validation split has no passages left.*smaller budget"):
    tasks.generate("reading_comprehension", "validation", 1, 1_000_000)


def test_an_unknown_task_is_named():
  with pytest.raises(ValueError, match="task='poetry' is none of multiple_choice"):
    tasks.generate("poetry", "train", 1, 400)

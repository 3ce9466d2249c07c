"""Each task solved from its text alone, by a solver that shares nothing with its generator."""

import re

import pytest

from qwenlong_jax.data import sources, tasks

SETTINGS = [(split, budget) for split in sources.SPLITS for budget in (250, 1500)]
settings = pytest.mark.parametrize(("split", "budget"), SETTINGS)


def made(task, split, budget):
  return tasks.generate(task, split, 60, budget, len, seed=11, worlds=2)


def looked_up(key, context):
  """The one value that the context gives for a key."""
  (value,) = [line.partition(": ")[2] for line in context.split("\n") if line.startswith(f"{key}: ")]
  return value


def document_of(line, context):
  (number,) = [n for n, document in enumerate(context.split("\n\n")) if line in document.split("\n")]
  return number


def asked(question):
  """(key, letter of each option) of a multiple choice question."""
  key, _, options = question.partition("? ")
  return key, dict(option.split(": ") for option in options.split(", "))


@settings
def test_multiple_choice_has_one_right_letter(split, budget):
  for e in made("multiple_choice", split, budget):
    key, letters = asked(e.question)
    value = looked_up(key, e.context)
    assert sorted(letters.values()) == list("ABCD")
    assert letters[value] == e.answer
    assert e.reasoning == f"{key}: {value}: {e.answer}"


def test_no_wrong_option_is_another_true_value_of_the_place():
  places = sources.load("train").places
  for e in tasks.generate("multiple_choice", "train", 300, 300, len, seed=12):
    key, letters = asked(e.question)
    attribute, place = key.split(" of ", 1)
    true = {fact.value for fact in places[place].facts[attribute]}
    assert len(true & set(letters)) == 1


@settings
def test_multi_hop_needs_two_documents(split, budget):
  for e in made("multi_hop", split, budget):
    second, first, place = re.fullmatch(r"(\w+) of the (\w+) of (.+)\?", e.question).groups()
    bridge = looked_up(f"{first} of {place}", e.context)
    assert looked_up(f"{second} of {bridge}", e.context) == e.answer
    lines = [f"{first} of {place}: {bridge}", f"{second} of {bridge}: {e.answer}"]
    assert document_of(lines[0], e.context) != document_of(lines[1], e.context)
    assert e.reasoning == "\n".join(lines)
    assert len({span.document for span in e.evidence}) == 2


@settings
def test_reading_comprehension_has_one_place_to_read(split, budget):
  for e in made("reading_comprehension", split, budget):
    phrase = e.question.removeprefix("complete: ")
    assert e.context.count(phrase) == 1
    assert re.findall(rf"{re.escape(phrase)} (.*)\.$", e.context, re.MULTILINE) == [e.answer]
    assert 1 <= len(e.answer.split()) <= 3


def test_passages_stand_in_the_documentation_word_for_word():
  from pydoc_data.topics import topics

  found = 0
  for e in tasks.generate("reading_comprehension", "train", 100, 400, len, seed=13):
    kind, _, name = e.evidence[0].document.partition("/")
    if kind == "topics":
      sentence = e.context[e.evidence[0].start : e.evidence[0].end]
      assert sentence in " ".join(topics[name].split())
      found += 1
  assert found > 5


@settings
def test_dialogue_memory_asks_for_the_last_of_somebodys_statements(split, budget):
  updates = 0
  for e in made("dialogue_memory", split, budget):
    key = e.question.removesuffix(" what, at last?")
    said = [line for line in e.context.split("\n") if line.startswith(f"{key} ")]
    assert said[-1] == f"{key} {e.answer}" == e.reasoning
    assert len(set(said)) == len(said)
    updates += len(said) > 1
    assert e.context[: e.evidence[0].start].count(f"{key} ") == len(said) - 1
  assert updates > 10


def rows(context):
  found = re.findall(r"^([A-Z]{2}): (.+) (\d+)$", context, re.MULTILINE)
  assert len({name for _, name, _ in found}) == len(found)
  return found


@settings
def test_numbers_are_computed_from_the_rows_shown(split, budget):
  asked = set()
  for e in made("corpus_numeric", split, budget):
    table = rows(e.context)
    people = {name: int(number) for _, name, number in table}
    operation, rest = re.fullmatch(r"(how many|most people|millions) in (.+)\?", e.question).groups()
    asked.add(operation)
    if operation == "millions":
      first, sign, second = re.fullmatch(r"(.+) ([+-]) in (.+)", rest).groups()
      truth = people[first] + people[second] if sign == "+" else people[first] - people[second]
      assert truth > 0
    else:
      matching = [name for continent, name, _ in table if continent == rest]
      largest = [name for name in matching if people[name] == max(people[n] for n in matching)]
      assert len(largest) == 1 or operation == "how many"
      truth = len(matching) if operation == "how many" else largest[0]
    assert e.answer == str(truth)
    assert len(table) > len(e.evidence)
  assert asked == {"how many", "most people", "millions"}

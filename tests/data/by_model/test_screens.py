from dataclasses import replace

from scripted import Scripted

from qwenlong_jax.data.prompts import Prompts
from qwenlong_jax.data.synthesis.screens import screen
from qwenlong_jax.data.verification_by_model import Panel
from qwenlong_jax.types import Example

ROOMS = Example("rooms", "multiple_choice", "There are rooms.", "Which room? (A) blue (B) red", "B")
QUAY = Example("quay", "reading_comprehension", "There is a quay.", "Who built the quay?", "Ada Morn")
TOLL = Example("toll", "corpus_numeric", "There is a toll.", "How high is the toll?", "9")


def screened(examples, blind, solving, guesses=1, bins=4, room=None):
  """`blind` and `solving`: answers by example, in the order of the samples."""

  def line(prompt: str, sample: int) -> str:
    example = next(one for one in (ROOMS, QUAY, TOLL) if one.question in prompt)
    said = solving if example.context in prompt else blind
    return f"The answer is: {said[example.id][sample]}"

  return screen(examples, Panel(Scripted(line), None, Prompts.load(), 4), guesses, bins, room)


def test_difficulty_is_the_bin_of_pass_at_k_with_the_context():
  blind = {"quay": ["no"] * 4, "toll": ["1"] * 4}
  solving = {"quay": ["Ada Morn", "no", "no", "no"], "toll": ["9"] * 4}
  passed, rejected = screened([QUAY, TOLL], blind, solving)
  found = {ident: (one.provenance["pass_rate"], one.provenance["difficulty"]) for ident, one in passed.items()}
  assert found == {"quay": (0.25, 1), "toll": (1.0, 3)} and not rejected
  assert [one.provenance["checks"]["grounded"]["right"] for one in passed.values()] == [0, 0]


def test_a_guess_is_allowed_where_there_are_options_and_nowhere_else():
  blind = {"rooms": ["B", "A", "A", "A"], "quay": ["Ada Morn", "no", "no", "no"]}
  solving = {"rooms": ["B"] * 4, "quay": ["Ada Morn"] * 4}
  passed, rejected = screened([ROOMS, QUAY], blind, solving)
  assert list(passed) == ["rooms"] and rejected["quay"].reason == "known"
  passed, rejected = screened([ROOMS], {"rooms": ["B", "B", "A", "A"]}, solving)
  assert not passed and rejected["rooms"].reason == "known"


def test_what_is_known_is_not_asked_about_with_the_context():
  passed, rejected = screened([QUAY, TOLL], {"quay": ["Ada Morn"] * 4, "toll": ["1"] * 4}, {"toll": ["2"] * 4})
  assert not passed and {ident: one.reason for ident, one in rejected.items()} == {
    "quay": "known",
    "toll": "never_solved",
  }


def test_what_the_solver_has_no_room_for_is_asked_about_without_its_context_only():
  sized = [replace(one, provenance={"tokens": tokens}) for one, tokens in ((QUAY, 100), (TOLL, 101))]
  known = replace(ROOMS, provenance={"tokens": 200})
  blind = {"quay": ["no"] * 4, "toll": ["1"] * 4, "rooms": ["B"] * 4}
  passed, rejected = screened([*sized, known], blind, {"quay": ["Ada Morn"] * 4}, room=100)
  assert passed["quay"].provenance["pass_rate"] == 1.0 and list(rejected) == ["rooms"]
  past = passed["toll"].provenance
  assert past["checks"]["robust"] == {"skipped": "longer than 100 tokens"} and past["checks"]["grounded"]["right"] == 0
  assert not {"pass_rate", "difficulty"} & set(past)

"""What the checker of synthesized data recomputes, worked out by hand, and where it refuses to say."""

import pytest
from recompute import agree, solve
from reread import Quantity, Unclear

PLAY = """=== Play ===
ANNA.
I go.
Good night.
Which must decide it.

BEN.
Stay.

ANNA.
No.
"""


def test_a_short_line_within_a_speech_is_no_speaker():
  needle = {"kind": "needle", "title": "Play", "speaker": "ANNA", "number": 0}
  assert solve(needle, PLAY).value == "I go.\nGood night.\nWhich must decide it."
  assert solve(needle | {"number": 1}, PLAY).value == "No."


def test_a_speech_begins_where_its_first_word_stands():
  needle = {"kind": "needle", "title": "Play", "speaker": "BEN", "number": 0}
  context = PLAY.replace("Stay.", "        Stay.")
  (place,), answer = solve(needle, context).needs[0], solve(needle, context).value
  assert answer == context[slice(*place)] == "Stay."


def test_stated_quantities_agree_exactly_and_computed_ones_to_their_decimals():
  assert agree("1,200 km", "1.2 thousand km")
  assert not agree("0.01 liters", "0 liters")
  assert agree("43 km", Quantity(43.004, "km", 0))
  assert not agree("43 km", Quantity(43.2, "km", 0))


def talk(*figures):
  lines = [f"Ana: Let us change the budget of the X group to {f}.\nBen: Agreed." for f in figures if f != "back"]
  back = "Ana: The last change to the budget of the X group was a mistake, go back.\nBen: Agreed."
  return "\n\n".join(back if f == "back" else lines.pop(0) for f in figures)


def test_going_back_once_restores_and_twice_is_unclear():
  program = {"kind": "agreement", "subject": "budget of the X group", "number": 3}
  assert solve(program, talk(10, 20, 30, "back")).value == "20"
  assert solve(program, talk(10, 20, "back", 30)).value == "30"
  refused = "Ben: What if the budget of the X group were 99?\nAna: No, never."
  assert solve(program, talk(10, 20) + f"\n\n{refused}\n\n" + talk(30, 40)).value == "40"
  with pytest.raises(Unclear, match="30 or to 10"):
    solve(program | {"number": 4}, talk(10, 20, 30, "back", "back"))


def quoted(*replies):
  asked = 'Quote me a sentence with the word'
  return "\n\n".join(f'{who}: {asked} "{of}".\nArchivist: {said}' for who, of, said in replies)


def test_a_reply_is_counted_by_who_asks_and_for_what():
  program = {"kind": "request", "person": "Ana", "word": "quay", "number": 1}
  first, second = ("Ana", "quay", "A quay was built."), ("Ana", "quay", "The Quay fell.")
  between = [("Ben", "quay", "No quay stood."), ("Ana", "boat", "A boat by the quay sank.")]
  context = quoted(first, *between, second)
  found = solve(program, context)
  assert found.value == "The Quay fell."
  # It rests on who asked, all of the times, and on what came of it.
  assert [context[slice(*place)] for (place,) in found.needs] == [
    'Ana: Quote me a sentence with the word "quay".\nArchivist: ',
    "A quay was built.",
    'Ana: Quote me a sentence with the word "quay".\nArchivist: ',
    "The Quay fell.",
  ]
  with pytest.raises(Unclear, match="Ana asks 1 times for 'quay'"):
    solve(program, quoted(first, *between))
  with pytest.raises(Unclear, match="does not hold 'quay'"):
    solve(program, quoted(first, ("Ana", "quay", "It fell.")))


def test_words_that_are_parts_of_names_are_unclear():
  context = "=== A ===\nalpha beta\n\n=== B ===\nalpha gamma\n\n=== C ===\nalpha_1 delta\n"
  program = {"kind": "count", "words": ["alpha", "beta"]}
  assert solve(program, context.replace("_1", "")).value.number == 2
  with pytest.raises(Unclear, match="parts of names"):
    solve(program, context)
  with pytest.raises(Unclear, match="in the title 'Alphabet'"):
    solve(program, context.replace("_1", "").replace("=== B", "=== Alphabet"))


def test_the_evidence_of_words_is_all_that_the_answer_rests_on():
  context = "=== A ===\nalpha beta\n\n=== B ===\n[...]\n\n## So: alpha\n\n=== C ===\nalpha Alpha\n"
  needs = lambda kind: [  # noqa: E731
    [context[slice(*place)] for place in places]
    for places in solve({"kind": kind, "words": ["alpha", "beta"]}, context).needs
  ]
  assert needs("count") == [["alpha"], ["beta"], ["alpha"], ["alpha", "Alpha"]]
  assert needs("both") == [["alpha"], ["beta"], ["B"]]
  assert needs("opening") == [["alpha"], ["beta"], ["alpha"], ["beta"]]


def test_a_tie_has_no_one_answer():
  context = "=== A ===\nX: 3\n\n=== B ===\nX: 3\n\n=== C ===\nX: 1\n"
  sql = {"kind": "sql", "noun": "document", "columns": {"x": "X"}, "rows": 3, "decimals": -1, "unit": ""}
  first = sql | {"sql": "SELECT name FROM facts ORDER BY x DESC LIMIT 1"}
  with pytest.raises(Unclear, match="tie"):
    solve(first, context)
  median = sql | {"sql": "SELECT median(x) FROM facts", "decimals": 1}
  assert solve(median, context).value.number == 3


def test_a_row_is_found_by_what_it_is_called_in_a_column():
  context = "=== A ===\n| name | seat |\n|--|--|\n| Alba | Ort |\n| Bero | Pell |\n\n"
  context += "=== B ===\n| town | people |\n|--|--|\n| Ort | 120 |\n| Pell | 90 |\n"
  hop = {"kind": "hop", "noun": "table row", "start": [["column name", "is", ["Alba"], ""]]}
  hop |= {"link": "column seat", "key": "column town", "answer": "column people"}
  answer = solve(hop, context)
  assert answer.value == "120"
  assert [context[slice(*places[0])] for places in answer.needs] == ["Alba", "Ort", "Ort", "120"]
  sql = {"kind": "sql", "noun": "table row", "sql": "SELECT sum(x) FROM facts", "columns": {"x": "column people"}}
  assert solve(sql | {"rows": 2, "decimals": 0, "unit": ""}, context).value.number == 210
  inverse = hop | {"kind": "inverse", "start": [["column people", "between", [90, 100], ""]], "answer": "column name"}
  assert solve(inverse, context).value == "Bero"

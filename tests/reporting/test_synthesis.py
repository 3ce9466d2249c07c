"""The page about a synthesis."""

import json
from collections import Counter

import pytest
from making import COUNTS, SCRIPT, example, examples, write_making
from pages import Page

from qwenlong_jax.reporting import gates, survey, synthesis_report


@pytest.fixture(scope="module")
def found():
  return survey({split: examples(split) for split in COUNTS})


@pytest.fixture
def workdir(tmp_path):
  return write_making(tmp_path / "syn")


@pytest.fixture
def text(workdir, found):
  return synthesis_report(workdir, found, files=32).read_text()


def test_the_page_nests_loads_nothing_and_runs_nothing(text):
  page = Page(text)
  assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
  for tag, attributes in page.elements:
    assert not any(name.startswith("on") for name in attributes), tag
    assert all(attributes.get(name, "data:").startswith("data:") for name in ("src", "href"))
  policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
  assert policy.startswith("default-src 'none'")


def test_what_documents_hold_is_shown_not_obeyed(text):
  assert "<script" not in text and "<img src=x" not in text
  page = Page(text)
  # Of each of twenty samples: question, answer, document's name, context and program.
  assert page.text.count('<script>alert("x")</script>') + text.count('\\&#34;x\\&#34;') >= 100
  assert page.count("img") == len([a for tag, a in page.elements if tag == "img" and len(a["alt"]) > 20])


def test_every_gate_has_its_counts(workdir):
  counts = gates.read_counts(workdir, ["train", "test"])
  lines = {line[0]: line[1:] for line in gates.through(workdir, counts, 32)}
  assert lines["Gate"] == ["train", "test", "All"] and lines["Files"] == ["", "", "32"]
  assert lines["Refused: too short"][-1] == "3" and lines["Refused: near duplicate"][-1] == "1"
  assert lines["Documents"] == ["20", "10", "30"]
  assert lines["Drafts of samples"] == ["31", "21", "52"]
  assert lines["Drafts dropped: does not fit"] == ["2", "7", "9"]
  assert lines["Orders given up: no draft was kept"] == ["1", "0", "1"]
  assert lines["Samples dropped: a test set holds them"] == ["4", "0", "4"]
  assert lines["Samples kept"] == ["16", "8", "24"]
  # What went in comes out.
  numbers = {name: int(line[-1]) for name, line in lines.items() if name.startswith(("Drafts dropped", "Samples"))}
  assert sum(numbers.values()) == 52


def test_an_outcome_of_tomorrow_is_shown_under_its_own_name(workdir):
  lines = gates.through(workdir, {"train": {"known_blind/multi_hop": 2, "kept/multi_hop": 1}}, None)
  assert ["Known blind", "2", "2"] in lines and ["Drafts of samples", "3", "3"] in lines


def test_drafts_are_dropped_by_kind_and_reason(workdir):
  assert gates.dropped(gates.read_counts(workdir, ["train", "test"])) == [
    ["Task and kind", "does not fit", "no draft", "all"],
    ["Corpus numeric: aggregation", "0", "1", "1"],
    ["Multi hop: causal", "7", "5", "12"],
    ["Multi hop: temporal", "2", "0", "2"],
  ]


def test_domains_are_counted_by_task(found):
  heading = ["Domain", "Multi hop", "Dialogue memory", "Corpus numeric", "All"]
  assert gates.domains(found.facts) == [heading, ["code", "16", "8", "8", "32"]]


def test_difficulty_is_drawn_where_it_was_measured_and_said_to_be_missing_elsewhere(workdir, text):
  assert "Difficulty was not measured" in Page(text).text
  measured = survey({"train": [*examples("train"), *examples("test", pass_rate=0.25)]})
  page = Page(synthesis_report(workdir, measured).read_text())
  assert "not measured: no sample" not in page.text and "of 16 of 32 samples" in page.text


def test_shortcuts_are_shown_if_somebody_measured_them(workdir, found, text):
  assert "Shortcuts were not measured" in Page(text).text
  table = {"longest option": {"multi_hop": {"mean": 0.25}, "n": 1200}, "no context": {"n": 3, "note": SCRIPT}}
  (workdir / "data" / "shortcuts.json").write_text(json.dumps(table))
  assert gates.shortcuts(workdir)[:2] == [
    ["", "multi_hop.mean", "n", "note"],
    ["longest option", "0.250", "1,200", "–"],
  ]
  text = synthesis_report(workdir, found).read_text()
  assert "longest option" in text and "<script" not in text


@pytest.mark.parametrize(
  ("value", "grid"),
  [
    ([{"a": 1, "b": True}, {"c": "x"}], [["a", "b", "c"], ["1", "True", "–"], ["–", "–", "x"]]),
    ({"first": 0.5}, [["", "value"], ["first", "0.500"]]),
    ({}, []),
    ([], []),
  ],
)
def test_a_table_of_any_shape_has_lines(value, grid):
  assert gates.as_grid(value) == grid


def test_twenty_samples_are_of_all_tasks_and_kinds_and_the_same_every_time(found, text):
  assert len(found.shown) == 20 == Page(text).count("article")
  by_kind = Counter((one.task, one.provenance["kind"]) for _, one in found.shown)
  assert len(by_kind) == 4
  assert Counter(one.task for _, one in found.shown).most_common()[-1][1] >= 6
  again = survey({split: reversed(examples(split)) for split in ("test", "train")})
  assert again.shown == found.shown


def test_a_single_kind_fills_all_places():
  assert len(survey({"train": [example("multi_hop", "causal", n) for n in range(50)]}).shown) == 20


def test_a_fact_says_where_the_evidence_lies():
  one = example("multi_hop", "causal", 0, pass_rate=0.5)
  (fact,) = survey({"train": [one]}).facts
  first, last = one.context.index("FACT"), one.context.rindex("FACT")
  assert fact.depths == pytest.approx(((last + 2) / len(one.context), (first + 2) / len(one.context)))
  assert fact.reach == pytest.approx((last + 4 - first) / len(one.context) * 1000)
  assert (fact.documents, fact.tokens, fact.pass_rate, fact.version) == (2, 1000, 0.5, "1")


def test_examples_that_say_little_of_themselves_are_reported(workdir):
  from qwenlong_jax.types import Example

  bare = survey({"train": [Example("a", "multi_hop", "", "Q?", "A"), Example("b", "other_$task", "c", "Q?", "A")]})
  page = Page(synthesis_report(workdir, bare).read_text())
  assert page.count("article") == 2 and "0 pieces of evidence" in page.text


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path):
  page = Page(synthesis_report(tmp_path, survey({})).read_text())
  assert "No samples." in page.text and page.count("img") == 0


def test_the_page_is_a_function_of_the_files(workdir, found, text):
  assert synthesis_report(workdir, found, files=32).read_text() == text


def test_a_folder_that_is_not_there_is_named(tmp_path, found):
  with pytest.raises(FileNotFoundError, match="gone is no folder"):
    synthesis_report(tmp_path / "gone", found)


def test_the_solve_rate_of_a_round_is_over_all_that_was_judged(workdir, found):
  assert "Self-evolution" not in synthesis_report(workdir, found).read_text()
  (workdir / "parts" / "evolved").mkdir()
  parts = (
    [[1, 4, 2, 1, 0.5, {"always_solved": 1}], [2, 4, 0, 0, None, {"malformed": 4}]],
    [[1, 8, 4, 2, 0.1, {"unchecked": 2}]],
  )
  names = ("number", "proposed", "passed_rules", "kept", "solve_rate", "rejected")
  for number, rounds in enumerate(parts):
    path = workdir / "parts" / "evolved" / f"{number}.json"
    path.write_text(json.dumps([dict(zip(names, one)) for one in rounds]))
  # Of the second part two of four were judged: (2 * 0.5 + 2 * 0.1) / 4.
  assert gates.evolution(workdir)[1:] == [["1", "12", "6", "0.30", "3"], ["2", "4", "0", "–", "0"]]
  assert "Self-evolution" in synthesis_report(workdir, found).read_text()


def test_what_became_of_triples_is_added_up_over_clusters(workdir, found):
  assert "<h2>Triples" not in synthesis_report(workdir, found).read_text()
  graph = {"documents": [0, 2], "triples": [{}] * 5, "groups": [["a", "b", "c"]], "rejected": {"different": 1}}
  other = {"documents": [1], "triples": [{}], "groups": [], "rejected": {"different": 2, "told_apart": 1}}
  portions = [{"rejected": {"pronoun": 1}}, {"rejected": {"pronoun": 1, "empty": 4}}]
  graphs = [graph | {"entities": 7, "edges": 4}, other | {"entities": 2, "edges": 1}]
  for folder, parts in (("graphs", graphs), ("triples", portions)):
    (workdir / "parts" / folder).mkdir()
    for number, part in enumerate(parts):
      (workdir / "parts" / folder / f"{number}.json").write_text(json.dumps(part))
  assert gates.triples(workdir)[1:] == [
    ["Documents read", "3"],
    ["Triples kept", "6"],
    ["Triples rejected: empty", "4"],
    ["Triples rejected: pronoun", "2"],
    ["Relations joined to another of their meaning", "2"],
    ["Synonyms rejected: different", "3"],
    ["Synonyms rejected: told apart", "1"],
    ["Entities", "9"],
    ["Facts between them", "5"],
  ]
  assert "<h2>Triples" in synthesis_report(workdir, found).read_text()

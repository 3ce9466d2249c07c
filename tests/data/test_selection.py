import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwenlong_jax.data import selection
from qwenlong_jax.data.selection import Contamination, pass_bins, stratify
from qwenlong_jax.types import Example, Span

FACT = "the harbour master of Port Ellis counted forty two grey herons on the north pier at dawn"
QUESTION = "Which harbour did the second herring fleet leave before the great storm?"
# Fourteen words: with the thirteenth changed, no thirteen in a row are left.
RUN = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def example(question="How many were counted?", answer="42", context="", evidence=()):
  return Example("multi_hop/1", "multi_hop", context, question, answer, evidence=evidence)


def written(path, *rows):
  if path.suffix == ".parquet":
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
  else:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


@pytest.mark.parametrize("name", ["test.jsonl", "test.parquet"])
def test_thirteen_words_in_a_row_in_any_string_field_are_a_hit(tmp_path, name):
  path = written(tmp_path / name, {"id": 1, "turns": [{"said": f"We read: {RUN.upper()}, and more."}]})
  reason = Contamination.of([path]).hit(example(answer=f"It is {RUN.replace(' ', ', ')}"))
  assert reason == f"{path}: shares 13 words in a row: {RUN.rsplit(' ', 1)[0]}"


def test_twelve_words_in_a_row_are_none(tmp_path):
  path = written(tmp_path / "test.jsonl", {"text": RUN.replace("thirteen", "other")})
  assert Contamination.of([path]).hit(example(answer=RUN)) == ""


def test_the_lines_of_the_evidence_count_and_the_rest_of_the_context_does_not(tmp_path):
  path = tmp_path / "test.txt"
  path.write_text(f"A chapter.\n\n{FACT}.\n")
  context = f"First line.\nSo {FACT}.\nLast line."
  there, elsewhere = context.index("forty two"), context.index("Last")
  tests = Contamination.of([path])
  assert "the harbour master" in tests.hit(example(context=context, evidence=(Span("a", there, there + 9),)))
  assert tests.hit(example(context=context, evidence=(Span("a", elsewhere, elsewhere + 4),))) == ""


@pytest.mark.parametrize("field", ["question", "Query", "content"])
def test_a_question_of_the_same_words_is_a_hit_in_whatever_order(tmp_path, field):
  path = written(tmp_path / "test.jsonl", {field: QUESTION})
  other = "Before the great storm, which harbour did the second herring fleet leave? Say it in a word."
  reason = Contamination.of([path]).hit(example(other))
  assert reason.startswith(f"{path}: asks alike (") and "which harbour did the second herring fleet" in reason


def test_other_questions_and_short_strings_are_no_hit(tmp_path):
  path = written(tmp_path / "test.jsonl", {"question": "How many?", "answer": "42", "text": "How many were counted"})
  tests = Contamination.of([path, written(tmp_path / "b.jsonl", {"question": QUESTION})])
  assert tests.hit(example()) == ""
  assert tests.hit(example("Which harbour did the lifeboat leave after the flood of 1901?")) == ""


def test_the_question_at_the_end_of_a_long_prompt_is_one(tmp_path):
  prompt = " ".join(f"word{n}" for n in range(500)) + f"\n\n{QUESTION}"
  path = written(tmp_path / "test.parquet", {"prompt": [{"role": "user", "content": prompt}]})
  assert "asks alike (100%)" in Contamination.of([path]).hit(example(QUESTION))


def test_text_of_no_spaces_has_words_too(tmp_path):
  text = "港口的主人在黎明时分数了四十二只灰鹭"
  tests = Contamination.of([written(tmp_path / "test.jsonl", {"text": text})])
  assert "shares 13 words" in tests.hit(example(answer=text)) and not tests.hit(example(answer=text[:12]))


def test_grams_that_were_sorted_in_portions_are_all_there(tmp_path, monkeypatch):
  monkeypatch.setattr(selection, "_PENDING", 3)
  texts = [" ".join(f"w{line}x{n}" for n in range(20)) for line in range(9)]
  tests = Contamination.of([written(tmp_path / "test.jsonl", *({"text": text} for text in texts))])
  assert len(tests.tests[0].grams) == 9 * 8 and all(tests.hit(example(answer=text)) for text in texts)


def test_no_test_sets_hold_nothing():
  assert Contamination.of([]).hit(example()) == ""


@pytest.mark.parametrize(
  ("name", "text", "words"),
  [
    ("a.csv", "a,b", "csv is not read; make it .jsonl"),
    ("a.jsonl", '{"a": 1}\n', "holds no text"),
    ("a.jsonl", '{"a": "b"}\n{"a', "line 2 is not JSON"),
    ("a.parquet", "not one", "is no Parquet file"),
  ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, text, words):
  (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=words):
    Contamination.of([tmp_path / name])


def test_a_file_that_is_not_there_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no file .*gone\.jsonl"):
    Contamination.of([tmp_path / "gone.jsonl"])


def test_bins_are_uniform_and_the_top_belongs_to_the_last():
  assert pass_bins([0, 0.19, 0.2, 0.5, 0.99, 1], 5) == [0, 0, 1, 2, 4, 4]
  assert pass_bins([n / 100 for n in range(100)], 100) == list(range(100))


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_a_rate_that_is_no_fraction_is_refused(rate):
  with pytest.raises(ValueError, match="is not a fraction"):
    pass_bins([0.5, rate], 4)


def test_each_source_gives_equal_numbers_of_every_bin_that_holds_so_many():
  rng = np.random.default_rng(0)
  sources = ["books"] * 200 + ["code"] * 100
  rates = [*rng.integers(0, 9, 200) / 8, *rng.integers(0, 5, 100) / 8]
  held = {s: np.bincount(pass_bins([r for r, o in zip(rates, sources) if o == s], 4), minlength=4) for s in sources}
  assert held["books"].min() < 50 < held["books"].max() and held["code"].min() == 0
  chosen = stratify(sources, rates, 4, 50, seed=1)
  for source, there in held.items():
    bins = pass_bins([rates[n] for n in chosen if sources[n] == source], 4)
    assert [bins.count(number) for number in range(4)] == [min(50, count) for count in there]
  assert chosen == sorted(set(chosen)) == stratify(sources, rates, 4, 50, seed=1)
  assert chosen != stratify(sources, rates, 4, 50, seed=2)


def test_a_sources_draw_does_not_depend_on_the_others():
  rates = [n / 20 for n in range(20)] * 2
  both, alone = (stratify(["b"] * 20 + ["a"] * n, rates[: 20 + n], 4, 2, seed=0) for n in (20, 0))
  assert [n for n in both if n < 20] == alone and len(both) == 2 * len(alone) == 16


def test_what_cannot_be_stratified_is_named():
  with pytest.raises(ValueError, match="per_bin=0 examples"):
    stratify(["a"] * 3, [0.0, 0.1, 1.0], 4, 0, seed=0)
  with pytest.raises(ValueError, match="2 sources for 3 pass rates"):
    stratify(["a"] * 2, [0.0, 0.1, 1.0], 4, 2, seed=0)

import json
import tracemalloc

import pyarrow.parquet as pq
import pytest

from qwenlong_jax.data import loading
from qwenlong_jax.types import Example, Span


@pytest.fixture(scope="module")
def program(load_program):
  return load_program("export_data")


def examples(count=3):
  """Of two tasks, their provenance not of one shape, with letters that JSON and Parquet must bear."""
  for n in range(count):
    task = ("multi_hop", "dialogue_memory")[n % 2]
    context = f"Zoë's line {n}\nsaid “néé” <b> \u2028 \N{BLACK HEART SUIT}"
    more = {"kind": "temporal", "program": {"hops": [n]}, "tokens": 12} if n % 2 else {"reward": "sequence"}
    provenance = {"domain": "general"} | more
    yield Example(f"{task}/{n}", task, context, "Who?", f"Zoë {n}", "", (Span("a.md", 0, 5),), provenance)


@pytest.fixture
def data(tmp_path):
  for split, count in (("train", 3), ("test", 1)):
    loading.write_shards(tmp_path / "data" / split, examples(count))
  return tmp_path / "data"


def read(path):
  if path.suffix == ".parquet":
    return pq.read_table(path).to_pylist()
  # Not splitlines: U+2028 within a string ends no line.
  return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_what_is_read_back_is_what_the_data_set_holds(program, data, tmp_path, form):
  assert program.export(data, tmp_path / "out", form) == {"test": 1, "train": 3}
  rows, wanted = read(tmp_path / "out" / f"train.{form}"), loading.read_all(data / "train")
  assert len(rows) == len(wanted)
  for index, (found, example) in enumerate(zip(rows, wanted)):
    assert list(found) == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    assert found["data_source"] == f"qwenlong_jax/{example.task}" and found["ability"] == example.task
    assert found["prompt"] == [{"role": "user", "content": f"{example.context}\n\n{example.question}"}]
    style = example.provenance.get("reward", "rule")
    assert found["reward_model"] == {"style": style, "ground_truth": example.answer}
    extra = found["extra_info"]
    assert (extra["index"], extra["split"], extra["id"]) == (index, "train", example.id)
    assert extra["tokens"] == example.provenance.get("tokens")
    assert json.loads(extra["provenance"]) == example.provenance
    (span,) = extra["evidence"]
    content = found["prompt"][0]["content"]
    assert content[span["start"] : span["end"]] == "Zoë's"


def test_both_formats_hold_the_same_rows(program, data, tmp_path):
  for form in program.FORMATS:
    program.export(data, tmp_path / "out", form)
  assert read(tmp_path / "out/train.jsonl") == read(tmp_path / "out/train.parquet")


def test_a_single_data_set_is_a_split_by_its_name(program, data, tmp_path):
  assert program.export(data / "test", tmp_path / "out", "jsonl") == {"test": 1}


def test_parquet_has_row_groups_and_a_schema_that_does_not_depend_on_the_values(program, tmp_path):
  rows = [program.row(example, n, "train") for n, example in enumerate(examples(150))]
  assert program.write_parquet(tmp_path / "a.parquet", rows) == 150
  file = pq.ParquetFile(tmp_path / "a.parquet")
  assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [64, 64, 22]
  bare = program.row(Example("a", "multi_hop", "", "Q?", "A"), 0, "train")
  program.write_parquet(tmp_path / "b.parquet", [bare])
  assert pq.read_schema(tmp_path / "b.parquet") == file.schema_arrow
  assert pq.read_table(tmp_path / "b.parquet").to_pylist() == [bare]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_the_rows(program, tmp_path, form):
  def rows(count):
    for n in range(count):
      yield program.row(Example(f"{n}", "multi_hop", f"{n} " * 5000, "Q?", "A"), n, "train")

  peaks = []
  for count in (128, 1024):
    tracemalloc.start()
    getattr(program, f"write_{form}")(tmp_path / f"{count}.{form}", rows(count))
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  assert peaks[1] < 1.5 * peaks[0]


def test_nothing_is_overwritten_and_no_data_set_is_named(program, data, tmp_path):
  program.export(data, tmp_path / "out", "jsonl")
  with pytest.raises(FileExistsError, match=r"test\.jsonl is there already"):
    program.export(data, tmp_path / "out", "jsonl")
  with pytest.raises(FileNotFoundError, match=r"no manifest\.json in"):
    program.export(tmp_path / "out", tmp_path / "other", "jsonl")

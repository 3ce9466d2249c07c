import dataclasses
import json
import re
import weakref
from collections import Counter
from itertools import chain

import pytest

from qwenlong_jax.data import loading
from qwenlong_jax.types import TASKS, Example, Span


def examples(each=7, tasks=TASKS):
  return [
    Example(
      id=f"{task}/{number}",
      task=task,
      context=f"größe of {number}: {task}",
      question="?",
      answer=str(number),
      reasoning="r",
      evidence=(Span("doc", 0, 5),),
      provenance={"seed": [0, number], "facts": ["é"]},
    )
    for task in tasks
    for number in range(each)
  ]


@pytest.fixture
def folder(tmp_path):
  loading.write_shards(tmp_path / "set", examples(), shards=2)
  return tmp_path / "set"


def ids(iterator, batches):
  return [[example.id for example in next(iterator)] for _ in range(batches)]


def test_examples_come_back_whole_and_in_order(folder):
  assert loading.read_all(folder) == examples()


def test_files_bear_the_task_and_shard_and_the_manifest_counts_them(folder):
  names = {path.name for path in folder.iterdir()}
  assert {f"{task}-{k:05d}-of-00002.array_record" for task in TASKS for k in (0, 1)} | {"manifest.json"} == names
  manifest = json.loads((folder / "manifest.json").read_text())
  assert manifest["tasks"] == dict.fromkeys(TASKS, 7)
  assert sum(file["examples"] for file in manifest["files"].values()) == 35


def test_examples_are_written_as_they_come(tmp_path):
  known = []

  def stream():
    for each in examples():
      example = dataclasses.replace(each)
      known.append(weakref.ref(example))
      assert sum(reference() is not None for reference in known) <= 2
      yield example

  loading.write_shards(tmp_path / "set", stream(), shards=3)
  assert len(known) == 35 and loading.read_all(tmp_path / "set") == examples()


def test_an_interrupted_write_leaves_no_data_set(tmp_path, monkeypatch):
  def fail(path, part):
    raise OSError("disk full")

  monkeypatch.setattr(loading, "_write_shard", fail)
  with pytest.raises(OSError, match="disk full"):
    loading.write_shards(tmp_path / "set", examples())
  with pytest.raises(FileNotFoundError, match=r"has no manifest\.json.*interrupted; write it again"):
    loading.read_all(tmp_path / "set")


@pytest.mark.parametrize("batch_size", [3, 5, 8, 12])
def test_five_batches_hold_equal_numbers_of_each_task(folder, batch_size):
  iterator = loading.load(folder, batch_size, seed=0)
  next(iterator)
  tasks = Counter(example.task for _ in range(5) for example in next(iterator))
  assert tasks == dict.fromkeys(TASKS, batch_size)


@pytest.mark.parametrize("balanced", [True, False])
def test_hosts_read_their_own_rows_of_the_batches_that_one_host_reads(folder, balanced):
  whole = loading.load(folder, 6, 3, balanced=balanced)
  shares = [[0, 1], [2, 5], [3, 4]]  # not every mesh leaves a host rows that follow each other
  hosts = [loading.load(folder, 6, 3, rows, balanced=balanced) for rows in shares]
  for wanted in ids(whole, 12):
    for rows, host in zip(shares, hosts):
      assert ids(host, 1) == [[wanted[row] for row in rows]]
  assert all(host.get_state() == whole.get_state() for host in hosts)


def test_an_epoch_reads_every_example_once_and_the_next_in_another_order(folder):
  iterator = loading.load(folder, 5, seed=1)
  first, second = ids(iterator, 7), ids(iterator, 7)
  everything = sorted(example.id for example in examples())
  assert sorted(chain(*first)) == sorted(chain(*second)) == everything
  assert first != second


def test_the_order_is_a_function_of_the_seed(folder):
  order = ids(loading.load(folder, 6, seed=4), 12)
  assert order == ids(loading.load(folder, 6, seed=4), 12)
  assert order != ids(loading.load(folder, 6, seed=5), 12)


def test_workers_do_not_change_the_order(folder):
  with_workers = loading.load(folder, 6, seed=4, workers=2)
  assert ids(with_workers, 9) == ids(loading.load(folder, 6, seed=4), 9)
  with_workers.close()


@pytest.mark.parametrize("workers", [0, 2, 5])
def test_a_restored_iterator_goes_on_exactly_in_mid_epoch(folder, workers):
  iterator = loading.load(folder, 4, seed=0, workers=workers)
  ids(iterator, 3)
  state = iterator.get_state()
  wanted = ids(iterator, 12)
  iterator.close()
  resumed = loading.load(folder, 4, seed=0, workers=workers)
  resumed.set_state(state)
  assert ids(resumed, 12) == wanted
  resumed.close()


def test_a_missing_folder_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no data set at .*nowhere.*write one with write_shards"):
    loading.load(tmp_path / "nowhere", 5, seed=0)


def test_nothing_to_write_is_an_error_that_names_the_folder(tmp_path):
  with pytest.raises(ValueError, match=r"no examples to write to .*set; generate some first"):
    loading.write_shards(tmp_path / "set", [])


def test_an_empty_data_set_is_named(folder):
  manifest = folder / "manifest.json"
  manifest.write_text(json.dumps({"format": 1, "tasks": {}, "files": {}}))
  with pytest.raises(ValueError, match=r"set is an empty data set; write examples"):
    loading.read_all(folder)


def test_a_task_without_examples_is_named(tmp_path):
  loading.write_shards(tmp_path / "set", examples(tasks=TASKS[:4]))
  with pytest.raises(ValueError, match=r"set holds no examples of corpus_numeric: .*generate examples of every task"):
    loading.load(tmp_path / "set", 5, seed=0)


def test_a_shard_cut_short_is_named(folder):
  shard = folder / "multi_hop-00001-of-00002.array_record"
  shard.write_bytes(shard.read_bytes()[:-10])
  with pytest.raises(ValueError, match=rf"{re.escape(str(shard))} has \d+ bytes where manifest\.json says \d+; copy"):
    loading.read_all(folder)


def test_a_missing_shard_is_named(folder):
  shard = folder / "multi_hop-00001-of-00002.array_record"
  shard.unlink()
  with pytest.raises(FileNotFoundError, match=rf"{re.escape(str(shard))} is missing but manifest\.json lists it; copy"):
    loading.load(folder, 5, seed=0)


@pytest.mark.parametrize("at", [100, 65_560], ids=["record", "index"])
def test_a_damaged_shard_is_named_wherever_the_damage_lies(folder, at):
  shard = folder / "multi_hop-00000-of-00002.array_record"
  content = bytearray(shard.read_bytes())
  content[at : at + 8] = bytes(byte ^ 255 for byte in content[at : at + 8])
  shard.write_bytes(content)
  with pytest.raises(
    ValueError, match=rf"{re.escape(str(shard))} (is damaged|cannot be opened).*copy the data set again"
  ):
    ids(loading.load(folder, 5, seed=0), 7)


def test_a_manifest_of_another_format_is_refused(folder):
  manifest = folder / "manifest.json"
  manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 9}))
  with pytest.raises(ValueError, match=r"manifest\.json says format 9, this version reads 1; write the data set again"):
    loading.read_all(folder)


def test_an_unreadable_manifest_is_named(folder):
  (folder / "manifest.json").write_text("{")
  with pytest.raises(ValueError, match=r"manifest\.json cannot be read .*copy the data set again"):
    loading.read_all(folder)


def test_rows_that_are_not_of_the_batch_are_refused_before_anything_is_read(tmp_path):
  for rows in ([], [4, 5]):
    with pytest.raises(ValueError, match=r"rows=\[.*\] must be at least one of the batch_size=5 rows 0\.\.4"):
      loading.load(tmp_path / "nowhere", 5, seed=0, rows=rows)


def test_more_shards_than_examples_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"shards=8 is more than the 7 examples of multiple_choice; use fewer shards"):
    loading.write_shards(tmp_path / "set", examples(), shards=8)


def test_a_data_set_is_not_overwritten(folder):
  with pytest.raises(FileExistsError, match=r"already holds a data set.*choose another folder or delete it first"):
    loading.write_shards(folder, examples())


def test_two_examples_of_one_id_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"two examples have the id multi_hop/0"):
    loading.write_shards(tmp_path / "set", examples(1, ["multi_hop"]) * 2)


def test_an_unknown_task_is_refused(tmp_path):
  odd = dataclasses.replace(examples()[0], task="poetry")
  with pytest.raises(ValueError, match="has task 'poetry', which is none of multiple_choice"):
    loading.write_shards(tmp_path / "set", [odd])

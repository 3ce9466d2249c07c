"""Documents to data sets: the same bytes however often it was killed, nothing twice, and the learner takes them."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import small
from made import digest, documents_of_tests
from ml_collections import ConfigDict

from qwenlong_jax.data import loading
from qwenlong_jax.data.synthesis import inventory, steps
from qwenlong_jax.data.synthesis.multiple_choice import stem
from qwenlong_jax.stages import recipe, setup, synthesize
from qwenlong_jax.types import TASKS


def written(folder: Path) -> Path:
  """The small corpus of tests/data/synthesis, with a copy, a near one, a torn and an empty file among its documents."""
  documents_of_tests().write_documents(folder)
  first = next(iter(sorted((folder / "general").glob("*.md"))))
  (folder / "general" / "zz-copy.md").write_text(first.read_text())
  (folder / "general" / "zz-near.md").write_text(first.read_text() + "\nSeen and signed.\n")
  (folder / "general" / "empty.md").write_text("")
  (folder / "general" / "torn.pdf").write_bytes(b"%PDF-1.7 torn")
  return folder


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
  return written(tmp_path_factory.mktemp("corpus") / "all")


def config_of(documents: Path, **changes: object) -> ConfigDict:
  c = small.get_config()
  c.documents = str(documents)
  c.synthesis.update(
    {
      "train": 8,
      "validation": 2,
      "test": 3,
      "train_share": 50,
      "validation_share": 25,
      "test_share": 25,
      "targets": (2200, 2800),
      "vocab_size": 4096,
      "workers": 1,
      **changes,
    }
  )
  return c.lock()


@pytest.fixture(scope="module")
def made(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
  folder = tmp_path_factory.mktemp("first") / "made"
  synthesize.run(config_of(documents, workers=2), folder)
  return folder


def test_every_task_has_its_samples_in_every_split(made: Path) -> None:
  for split, wanted in (("train", 8), ("validation", 2), ("test", 3)):
    tasks = [example.task for example in loading.read_all(made / "data" / split)]
    assert {task: tasks.count(task) for task in TASKS} == dict.fromkeys(TASKS, wanted), split


def test_no_document_is_in_two_splits_and_no_question_twice(made: Path) -> None:
  seen: dict[str, str] = {}
  questions = []
  for split in ("train", "validation", "test"):
    for example in loading.read_all(made / "data" / split):
      questions.append(stem(example.question))
      for source in example.provenance["documents"]:
        assert seen.setdefault(source["id"], split) == split
  assert len(set(questions)) == len(questions)


def test_what_is_no_document_is_counted(made: Path) -> None:
  refused = [json.loads(line) for line in (made / "parts/clusters/refused.jsonl").read_text().splitlines()]
  reasons = {entry["path"]: entry["reason"] for entry in refused}
  assert reasons["general/zz-copy.md"] == "duplicate"
  assert reasons["general/zz-near.md"] == "near_duplicate"
  assert reasons["general/empty.md"] == "empty"
  assert reasons["general/torn.pdf"] == "truncated"


def test_another_run_writes_the_same_bytes_and_of_a_changed_folder_is_refused(made: Path, tmp_path: Path) -> None:
  folder = written(tmp_path / "all")
  for _ in range(2):  # the second time there is nothing left to do
    synthesize.run(config_of(folder), tmp_path / "made")
    assert digest(tmp_path / "made") == digest(made)
  (folder / "general" / "zz-copy.md").unlink()
  with pytest.raises(ValueError, match=r"general/zz-copy\.md is gone"):
    synthesize.run(config_of(folder), tmp_path / "made")


def kill_until_done(config: ConfigDict, folder: Path, kills: int, longest: float) -> int:
  """Starts it in forks that are killed after a random time, then lets it end; how often it was killed."""
  # Forks of a process that has imported everything and done nothing: each starts at once.
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["qwenlong_jax.stages.synthesize"])
  rng = np.random.default_rng(0)
  killed = 0
  while True:
    child = context.Process(target=synthesize.run, args=(config, folder))
    child.start()
    if killed < kills:
      time.sleep(rng.uniform(0, longest))
      child.kill()
    child.join()
    if child.exitcode == 0:
      return killed
    killed += 1


def test_killed_anywhere_it_goes_on_to_the_same_bytes(made: Path, documents: Path, tmp_path: Path) -> None:
  assert kill_until_done(config_of(documents), tmp_path / "made", kills=12, longest=0.5) > 5
  assert digest(tmp_path / "made") == digest(made)


POOL = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from qwenlong_jax.stages.synthesize import end_with_parent

if __name__ == "__main__":
  with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), {initializer}) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize(("initializer", "ends"), [("end_with_parent", True), ("None", False)])
def test_a_killed_run_leaves_no_worker_behind(tmp_path: Path, initializer: str, ends: bool) -> None:
  (tmp_path / "pool.py").write_text(POOL.format(initializer=initializer))
  with subprocess.Popen([sys.executable, str(tmp_path / "pool.py")], stdout=subprocess.PIPE, text=True) as run:
    assert run.stdout is not None
    worker = int(run.stdout.readline())
    run.kill()
  until = time.monotonic() + (30 if ends else 1)
  while (alive := Path(f"/proc/{worker}/cmdline").exists()) and time.monotonic() < until:
    time.sleep(0.05)
  if alive:
    os.kill(worker, signal.SIGKILL)
  assert alive != ends


@pytest.mark.slow
def test_two_hundred_kills_change_nothing(documents: Path, tmp_path: Path) -> None:
  changes = {"train": 160, "validation": 20, "test": 20}
  synthesize.run(config_of(documents, **changes), tmp_path / "whole" / "made")
  kills = kill_until_done(config_of(documents, **changes), tmp_path / "killed" / "made", kills=200, longest=0.25)
  assert kills == 200
  assert digest(tmp_path / "killed" / "made") == digest(tmp_path / "whole" / "made")


def change(folder: Path, how: str) -> str:
  """Adds, removes or changes a document; the name of it."""
  path = folder / "b.md"
  if how == "is new":
    path = folder / "aa.md"
    path.write_text("# New\n\n" + "Words that were not there before. " * 20)
  elif how == "is gone":
    path.unlink()
  else:
    path.write_text(path.read_text() + "more")
  return path.name


@pytest.mark.parametrize("how", ["is new", "is gone", "has changed"])
def test_a_workdir_belongs_to_the_files_that_it_was_started_with(tmp_path: Path, how: str) -> None:
  folder = tmp_path / "documents"
  folder.mkdir()
  for name in "abc":
    (folder / f"{name}.md").write_text(f"# {name}\n\n" + f"The text {name} of some words. " * 20)
  settings = synthesize.settings_of(config_of(folder), tmp_path / "work")
  inventory.check(settings, steps.chunks(settings))
  inventory.check(settings, steps.chunks(settings))
  name = change(folder, how)
  remedy = "its tokenizer too; use another --workdir, or remove all .* but replies"
  with pytest.raises(ValueError, match=f"{name} {how} since .*{remedy}"):
    synthesize.run(config_of(folder), tmp_path / "work")
  assert not (tmp_path / "work" / "parts" / "read").exists()


_TINY = """
import sys
from pathlib import Path
from test_synthesize import config_of
from qwenlong_jax.stages import synthesize
synthesize.run(config_of(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def test_in_a_locale_of_ascii_it_writes_the_same_bytes(made: Path, documents: Path, tmp_path: Path) -> None:
  environment = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
  environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
  command = [sys.executable, "-c", _TINY, str(documents), str(tmp_path / "made")]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")
  assert done.returncode == 0, done.stderr[-2000:]
  assert digest(tmp_path / "made") == digest(made)


def test_beam_writes_the_same_bytes(made: Path, documents: Path, tmp_path: Path) -> None:
  pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install 'qwenlong_jax[beam]'")
  synthesize.run(config_of(documents, runner="beam"), tmp_path / "made")
  assert digest(tmp_path / "made") == digest(made)


def test_a_damaged_part_is_named(documents: Path, made: Path, tmp_path: Path) -> None:
  config = config_of(documents)
  shutil.copytree(made, tmp_path, dirs_exist_ok=True)
  settings = synthesize.settings_of(config, tmp_path)
  block = steps.blocks(settings, {("train", "multi_hop"): 1}, [])[0]
  block.part(settings).write_text('{"number": 0, "exam')
  for manifest in tmp_path.glob("data/*/manifest.json"):
    manifest.unlink()
  with pytest.raises(ValueError, match=f"{block.part(settings).name}.*remove"):
    synthesize.run(config, tmp_path)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"runner": "spark"}, "synthesis.runner='spark' is not one of local, beam"),
    ({"targets": (500,)}, "at least 1,000"),
    ({"train_share": 0}, "synthesis.train_share"),
    ({"train": -1}, "synthesis.train=-1"),
    ({"workers": -1}, "synthesis.workers=-1 must be at least 0"),
    ({"cluster_documents": 0}, "synthesis.cluster_documents=0 must be at least 1"),
    ({"vocab_size": 100}, "synthesis.vocab_size=100 must be at least 261"),
    ({"duplicate_threshold": 0.0}, "synthesis.duplicate_threshold=0.0 must be above 0 and at most 1"),
    ({"duplicate_threshold": 1.5}, "synthesis.duplicate_threshold=1.5 must be above 0 and at most 1"),
    ({"languages": ("xx",)}, "languages"),
  ],
)
def test_a_setting_that_cannot_be_used_is_refused(
  documents: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
  with pytest.raises(ValueError, match=message):
    synthesize.run(config_of(documents, **changes), tmp_path)
  assert not list(tmp_path.iterdir())  # before anything is read


def test_spaces_and_empty_names_between_folders(tmp_path: Path) -> None:
  config = config_of(tmp_path).unlock()
  config.documents = f"{tmp_path / 'one'}, {tmp_path / 'the other'} "
  settings = synthesize.settings_of(config, tmp_path)
  assert settings.documents == (str(tmp_path / "one"), str(tmp_path / "the other"))
  config.documents = f"{tmp_path / 'one'},"
  with pytest.raises(ValueError, match=r"config.documents='.*one,' names an empty folder; remove the comma"):
    synthesize.settings_of(config, tmp_path)


def told(documents: Path, counts: dict[str, int]) -> list[str]:
  """Of a training split alone, of which one multi-hop sample too few is there."""
  settings = synthesize.settings_of(config_of(documents, validation=0, test=0), documents)
  kept = {f"kept/{task}": 8 for task in TASKS} | {"kept/multi_hop": 7}
  return [line for line in synthesize.told(settings, {"train": kept | counts}) if line.startswith("  ")]


def test_of_fewer_samples_than_wanted_the_commonest_reason_is_named(documents: Path) -> None:
  counts = {
    "dropped/multi_hop/causal/length": 30,
    "dropped/multi_hop/temporal/length": 20,
    "dropped/multi_hop/causal/no_draft": 40,
    "dropped/corpus_numeric/sum/no_draft": 900,
    "dropped/multi_hop/rewording/another_result": 500,
    "duplicate/multi_hop": 10,
    "given_up/multi_hop": 300,
  }
  (line,) = told(documents, counts)
  assert line.startswith("  multi_hop: 7 of 8; most failed by length (50 of 100): ")
  assert "lower synthesis.targets or give more" in line
  (line,) = told(documents, counts | {"duplicate/multi_hop": 60})
  assert "most failed by duplicate (60 of 150); give more documents" in line and "targets" not in line
  (line,) = told(documents, {})
  assert "no documents of this split bear it" in line


def test_folders_that_are_missing_or_hold_no_documents_are_named(tmp_path: Path) -> None:
  with pytest.raises(FileNotFoundError, match="nowhere"):
    synthesize.run(config_of(tmp_path / "nowhere"), tmp_path / "work")
  (tmp_path / "bare").mkdir()
  with pytest.raises(ValueError, match="no files in"):
    synthesize.run(config_of(tmp_path / "bare"), tmp_path / "work")
  (tmp_path / "bare" / "a.md").write_text("short")
  with pytest.raises(ValueError, match="1 too_short"):
    synthesize.run(config_of(tmp_path / "bare"), tmp_path / "work")


def test_the_learner_trains_on_them(made: Path, tmp_path: Path) -> None:
  config = small.get_config()
  config.data.folder = str(made / "data")
  config.tokenizer.path = str(made / "tokenizer")
  config.warmstart.steps = 0
  config.stages.one.update({"steps": 2, "prompt_tokens": 2900})
  config.stages.two.steps = 0
  config.batch.group = 2
  config.evaluation.update({"prompt_tokens": (2900,), "prompts": 2, "group": 2, "response_tokens": 4})
  recipe.run(config.lock(), tmp_path)
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == [0, 1]


def test_examples_that_are_too_long_for_a_stage_are_left_out(made: Path) -> None:
  every = loading.read_all(made / "data" / "train")
  kept = setup.short_enough(made / "data" / "train", 13_000, 4, len)
  assert {example.task for example in kept} == set(TASKS)
  assert all(len(f"{example.context}\n\n{example.question}") <= 13_000 for example in kept)
  assert [example for example in every if example in kept] == kept
  with pytest.raises(ValueError, match="of at most 100 tokens; raise the stage's prompt_tokens"):
    setup.short_enough(made / "data" / "train", 100, 4, len)


def test_all_parts_of_a_table_go_to_one_split_and_its_share_is_filled(tmp_path: Path) -> None:
  folder = tmp_path / "documents"
  folder.mkdir()
  rows = {"large": 4000, "second": 1500, "third": 900, "fourth": 700, "small": 60}
  for name, count in rows.items():
    lines = [f"{name} {number},{number * 7919 % 9973},{number * 104729 % 7907}" for number in range(count)]
    (folder / f"{name}.csv").write_text("\n".join(["name,size,weight", *lines]))
  for number in range(40):
    text = " ".join(f"w{number}x{word}" for word in range(60))
    (folder / f"t{number}.jsonl").write_text(json.dumps({"text": f"The text no. {number} of some words: {text}."}))
  settings = synthesize.settings_of(config_of(folder), tmp_path / "work")
  for chunk in (chunks := steps.chunks(settings)):
    steps.read_chunk(settings, chunk)
  steps.gather(settings, chunks)
  dealt: dict[str, Counter[str]] = defaultdict(Counter)
  for cluster in steps.clusters(settings):
    for document in steps.documents(settings, cluster):
      dealt[document.source.path.partition(".csv")[0]][cluster.split] += 1
  # Of 144 parts train's share is 72, the others' 36 each; validation is before test where they lack the same.
  assert {name: dict(dealt[name]) for name in rows} == {
    "large": {"train": 80},
    "second": {"validation": 30},
    "third": {"test": 18},
    "fourth": {"test": 14},
    "small": {"validation": 2},
  }
  assert len({split for name in dealt if name not in rows for split in dealt[name]}) == 3


def test_roots_of_one_name_keep_their_documents_apart(tmp_path: Path) -> None:
  for parent in ("one", "two"):
    (tmp_path / parent / "notes").mkdir(parents=True)
    (tmp_path / parent / "notes" / "a.md").write_text(f"# In {parent}\n\n" + f"The {parent} text of some words. " * 20)
  config = config_of(tmp_path)
  config.unlock()
  config.documents = f"{tmp_path / 'one' / 'notes'},{tmp_path / 'two' / 'notes'}"
  settings = synthesize.settings_of(config, tmp_path / "work")
  (chunk,) = steps.chunks(settings)
  steps.read_chunk(settings, chunk)
  read = json.loads(chunk.part(settings).read_text())
  assert [document["id"] for document in read["documents"]] == ["notes/a.md", "notes-2/a.md"]

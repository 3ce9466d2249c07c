"""Whatever stops a run, the same command ends with what an uninterrupted one leaves, to the byte."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Path(__file__).with_name("small.py")
STEPS = {"warmstart": range(6), "one": range(6, 10), "two": range(10, 14)}
LAST = 14
TIMEOUT = 900


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
  """One device; what is compiled is compiled fast, and once for all these processes."""
  flags = os.environ["CPU_XLA_FLAGS"].replace("device_count=8", "device_count=1")
  return one_device(tmp_path_factory.mktemp("compiled")) | {"XLA_FLAGS": flags}


def one_device(cache):
  """Without what tests/conftest.py sets for eight devices; compiled programs are shared through the folder `cache`."""
  inherited = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}
  return inherited | {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}


class Run:
  """Processes of one command on one workdir, one after the other."""

  def __init__(self, workdir, environment, kind="scored"):
    self.workdir, self.environment, self.kind = workdir, environment, kind

  def start(self, *overrides):
    command = [sys.executable, str(ROOT / "experiments/run.py"), f"--config={CONFIG}:{self.kind}"]
    command += [f"--workdir={self.workdir}", *overrides]
    return subprocess.Popen(
      command, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.workdir.parent
    )

  def result(self, process):
    """(exit status, stdout, stderr)."""
    try:
      out, err = process.communicate(timeout=TIMEOUT)
    finally:
      process.kill()
    return process.returncode, out, err

  def finish(self, *overrides):
    """To the end; what it printed."""
    status, out, err = self.result(self.start(*overrides))
    assert status == 0, err
    return out

  def stop(self, number, moment):
    """Started, and sent the signal `number` as soon as moment() holds."""
    process = self.start()
    until = time.monotonic() + TIMEOUT
    while process.poll() is None and not moment() and time.monotonic() < until:
      time.sleep(0.001)
    assert process.poll() is None, f"it ended before the moment came: {self.result(process)}"
    process.send_signal(number)
    return self.result(process)

  def rows(self, count):
    """The moment at which metrics.jsonl holds `count` rows."""
    path = self.workdir / "metrics.jsonl"
    return lambda: path.exists() and path.read_bytes().count(b"\n") >= count

  def saving(self, step):
    """The moment at which a checkpoint of `step` appears, under its temporary name or its own."""
    return lambda: any((self.workdir / "checkpoints").glob(f"{step}*"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, environment):
  run = Run(tmp_path_factory.mktemp("straight") / "run", environment)
  run.finish()
  return run.workdir


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, environment, uninterrupted):
  """A run that was told to stop in its warm start, then killed twice; and what it said when it was told."""
  run = Run(tmp_path_factory.mktemp("broken") / "run", environment)
  told = run.stop(signal.SIGTERM, run.rows(2))
  assert run.stop(signal.SIGKILL, run.saving(6))[0] == -signal.SIGKILL  # between warm start and the first stage
  assert run.stop(signal.SIGKILL, run.saving(9))[0] == -signal.SIGKILL  # in a save within a stage
  run.finish()
  return run.workdir, told


def records(workdir):
  """What a run leaves that its seed determines: name -> bytes."""
  paths = [workdir / "metrics.jsonl", workdir / "config.json", *sorted((workdir / "evaluation").iterdir())]
  return {path.name: path.read_bytes() for path in paths}


def checkpoint(workdir, step):
  """(host values, every array of the state by name)."""
  with ocp.CheckpointManager(workdir / "checkpoints") as manager:
    items = ocp.args.Composite(state=ocp.args.StandardRestore(), json=ocp.args.JsonRestore())
    restored = manager.restore(step, args=items)
  return restored["json"]["content"]["host"], restored["state"]


def assert_same_run(one, other):
  assert records(one).keys() == records(other).keys()
  for name, content in records(one).items():
    assert content == records(other)[name], f"{name} differs"
  (host, state), (other_host, other_state) = checkpoint(one, LAST), checkpoint(other, LAST)
  assert host == other_host
  assert jax.tree.structure(state) == jax.tree.structure(other_state)
  for path, leaf in jax.tree.leaves_with_path(state):
    there = np.asarray(other_state[path[0].key])
    assert leaf.dtype == there.dtype and np.asarray(leaf).tobytes() == there.tobytes(), f"{path} differs"


def rows(workdir, name):
  return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def test_a_run_does_every_step_of_every_stage_and_really_learns(uninterrupted):
  found = rows(uninterrupted, "metrics.jsonl")
  assert [(row["stage"], row["step"]) for row in found] == [(name, step) for name in STEPS for step in STEPS[name]]
  assert all(row["skipped"] == "" and row["learned_tokens"] > 0 for row in found)
  assert len({row["entropy"] for row in found if row["stage"] != "warmstart"}) == 8
  evaluations = ["01-warmstart", "02-one", "03-two"]
  assert sorted(path.name for path in (uninterrupted / "evaluation").iterdir()) == sorted(
    f"{name}.{kind}" for name in evaluations for kind in ("json", "transcripts.jsonl")
  )
  for name in evaluations:
    # The first four examples of each of the five tasks, the first response of each.
    assert len(rows(uninterrupted, f"evaluation/{name}.transcripts.jsonl")) == 20
  assert (uninterrupted / "report.html").stat().st_size > 10_000
  names = checkpoint(uninterrupted, LAST)[1].keys()
  assert any("params" in name for name in names) and any("optimizer" in name for name in names)


@pytest.mark.slow
def test_a_finished_run_goes_on_with_a_stage_that_it_is_given(environment, uninterrupted, tmp_path):
  run = Run(tmp_path / "run", environment)
  run.finish("--config.stages.two.steps=0")
  (run.workdir / "config.json").unlink()  # Other settings in one workdir are refused; who deletes it means it.
  run.finish()
  assert_same_run(run.workdir, uninterrupted)


def test_sampler_and_trainer_agree_on_every_token(uninterrupted):
  gaps = [row["gap_max"] for row in rows(uninterrupted, "metrics.jsonl") if row["stage"] != "warmstart"]
  assert len(gaps) == 8 and 0 < max(gaps) < 1e-5


def test_nothing_is_compiled_after_the_first_step_of_a_stage(uninterrupted):
  first_save = 3  # its checksums are compiled in the row after it
  timing = rows(uninterrupted, "timing.jsonl")
  assert all(timing[steps[0]]["compilations"] > 0 for steps in STEPS.values())
  later = [step for steps in STEPS.values() for step in steps[1:] if step != first_save]
  assert {step: timing[step]["compilations"] for step in later} == dict.fromkeys(later, 0)


def test_a_run_stopped_and_killed_ends_as_if_it_had_not_been(uninterrupted, interrupted):
  workdir, _ = interrupted
  assert_same_run(uninterrupted, workdir)
  assert [row["step"] for row in rows(workdir, "timing.jsonl")] == list(range(LAST))
  assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["12", "14"]


def test_sigterm_saves_says_how_to_go_on_and_exits_143(interrupted):
  _, (status, out, err) = interrupted
  assert status == 143, err
  said = re.search(r"stopped by SIGTERM after (\d+) steps, which are saved; the same command goes on from there", out)
  assert said and int(said[1]) >= 2
  assert "Traceback" not in err


@pytest.mark.slow
def test_a_run_killed_in_every_save_and_after_every_step_ends_as_if_it_had_not_been(tmp_path):
  straight = Run(tmp_path / "straight", one_device(tmp_path / "compiled"))
  straight.finish()
  run = Run(tmp_path / "broken", straight.environment)
  for step in range(LAST):
    assert run.stop(signal.SIGKILL, run.rows(step + 1))[0] == -signal.SIGKILL
    if step + 1 in (3, 6, 9, 10, 12):
      assert run.stop(signal.SIGKILL, run.saving(step + 1))[0] == -signal.SIGKILL
  run.finish()
  assert_same_run(straight.workdir, run.workdir)


@pytest.mark.slow
def test_a_finished_run_is_not_done_again(uninterrupted, environment, tmp_path):
  shutil.copytree(uninterrupted, tmp_path / "run")
  out = Run(tmp_path / "run", environment).finish()
  assert "restored step 14" in out and "evaluation" not in out
  assert_same_run(uninterrupted, tmp_path / "run")


def test_a_damaged_checkpoint_is_fatal_unless_the_one_before_may_be_taken(uninterrupted, environment, tmp_path):
  shutil.copytree(uninterrupted, tmp_path / "run")
  run = Run(tmp_path / "run", environment)
  for path in run.workdir.glob("evaluation/03-*"):
    path.unlink()
  before = records(run.workdir)
  largest = max((run.workdir / "checkpoints/14/state").rglob("*"), key=lambda path: path.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 16
  largest.write_bytes(content)

  status, _, err = run.result(run.start())
  assert status == 1 and len(err.splitlines()) == 1
  assert err.startswith(f"error: checkpoint 14 in {run.workdir / 'checkpoints'} ")
  assert "allow_previous" in err
  assert records(run.workdir) == before

  out = run.finish("--config.checkpoint.allow_previous=True")
  assert "restored step 12" in out
  assert_same_run(uninterrupted, run.workdir)


@pytest.mark.slow
def test_variants_start_from_one_warm_start_and_are_not_done_twice(environment, uninterrupted, tmp_path):
  run = Run(tmp_path / "run", environment, kind="compared")
  first = run.finish()
  folders = [run.workdir / name for name in ("warmstart-3", "zeta-3", "alpha-3")]
  for folder in folders[1:]:
    assert (folder / "metrics.jsonl").read_bytes().startswith((folders[0] / "metrics.jsonl").read_bytes())
    name = "evaluation/01-warmstart.json"
    assert (folder / name).read_bytes() == (folders[0] / name).read_bytes()
    (host, state), (start_host, start) = checkpoint(folder, 6), checkpoint(folders[0], 6)
    assert host == start_host
    assert all(np.array_equal(state[leaf], start[leaf]) for leaf in start)
  zeta, alpha = (rows(folder, "metrics.jsonl") for folder in folders[1:])
  assert len(zeta) == len(alpha) == 8
  assert zeta[6]["entropy"] == alpha[6]["entropy"] and zeta[6]["reward"] == alpha[6]["reward"]
  assert zeta[6]["masked_samples"] > 0 == alpha[6]["masked_samples"]
  assert zeta[7]["entropy"] != alpha[7]["entropy"]

  written = (run.workdir / "table.md").read_text()
  found = [re.match(r"\| *(warmstart|zeta|alpha) ", line) for line in written.splitlines()]
  assert [match[1] for match in found if match] == ["warmstart", "zeta", "alpha"]
  before = {folder: records(folder) for folder in folders}
  (folders[0] / "evaluation/01-warmstart.json").unlink()  # as a kill right before it was written leaves it
  again = run.finish()
  assert {folder: records(folder) for folder in folders} == before
  assert (run.workdir / "table.md").read_text() == written
  assert last_table(again) == last_table(first)
  assert not re.search(r"^(warmstart|one) +\d+/", again, re.MULTILINE), "it has trained again"


def last_table(out):
  """What stands between the last run's report and the curves."""
  return out.rpartition("report: ")[2].split("\n", 1)[1]

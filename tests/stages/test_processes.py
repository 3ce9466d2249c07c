"""Two processes of four devices are one process of eight: the same numbers, texts and checkpoints; none dies alone."""

import json
import os
import re
import shutil
import signal
import socket
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
# Steps so small that Adam does not blow up the last bits, in which sums over other processes differ.
SETTINGS = {
  "batch.prompts": 8,
  "warmstart.rows": 8,
  "warmstart.steps": 2,
  "warmstart.warmup_steps": 1,
  "warmstart.learning_rate": 1e-4,
  "optimizer.learning_rate": 1e-5,
  "stages.one.steps": 2,
  "stages.two.steps": 0,
  "checkpoint.every": 1,
}
LAST, TIMEOUT = 4, 300
MESHES = {"data 8": (8, 1), "data 2, ring 4": (2, 4), "ring 8, through both processes": (1, 8)}


class Run:
  """Processes of one command on one workdir."""

  def __init__(self, workdir, cache, mesh=(8, 1), **settings):
    self.workdir, self.cache = workdir, cache
    changed = SETTINGS | {"mesh.data": mesh[0], "mesh.ring": mesh[1]} | settings
    self.settings = [f"--config.{name}={value}" for name, value in changed.items()]

  def start(self, processes, *extra):
    """`extra`: further arguments for each process."""
    with socket.socket() as free:
      free.bind(("localhost", 0))
      address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, str(ROOT / "experiments/run.py"), f"--config={CONFIG}:scored", *self.settings]
    command += [f"--workdir={self.workdir}"]
    flags = os.environ["CPU_XLA_FLAGS"].replace("device_count=8", f"device_count={8 // processes}")
    cache = {"JAX_COMPILATION_CACHE_DIR": str(self.cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
    self.processes = []
    for number in range(processes):
      joins = [f"--coordinator={address}", f"--processes={processes}", f"--process={number}"] if processes > 1 else []
      self.processes.append(
        subprocess.Popen(
          [*command, *joins, *(extra[number] if extra else [])],
          env=os.environ | cache | {"XLA_FLAGS": flags},
          text=True,
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
        )
      )

  def results(self):
    """(exit status, stdout, stderr) of each process."""
    try:
      said = [process.communicate(timeout=TIMEOUT) for process in self.processes]
    finally:
      for process in self.processes:
        process.kill()
    return [(process.returncode, *words) for process, words in zip(self.processes, said)]

  def finish(self, processes):
    self.start(processes)
    results = self.results()
    assert [status for status, _, _ in results] == [0] * processes, results
    return results

  def stop(self, number, victim, step):
    """Two processes, of which `victim` is sent the signal `number` when checkpoint `step` is there."""
    self.start(2)
    until = time.monotonic() + TIMEOUT
    while not (self.workdir / f"checkpoints/{step}").exists():
      assert time.monotonic() < until and all(process.poll() is None for process in self.processes), self.results()
      time.sleep(0.01)
    self.processes[victim].send_signal(number)
    sent = time.monotonic()
    return self.results(), time.monotonic() - sent


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def alone(tmp_path_factory, cache):
  """A finished run of one process on eight devices."""
  run = Run(tmp_path_factory.mktemp("alone") / "run", cache)
  run.finish(1)
  return run.workdir


def prepared(workdir, other):
  """`workdir` with the tokenizer and the data of another run: the same, without making them again."""
  for part in ("tokenizer", "data"):
    shutil.copytree(other / part, workdir / part)
  return workdir


def texts(workdir):
  """What was sampled, and its rewards, in evaluations."""
  return {path.name: path.read_text() for path in sorted((workdir / "evaluation").iterdir())}


def rows(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def checkpoint(workdir):
  """(host values, every array of the last state by name), on one device."""
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  with ocp.CheckpointManager(workdir / "checkpoints") as manager:
    content = manager.restore(LAST, args=ocp.args.Composite(json=ocp.args.JsonRestore()))["json"]["content"]
    shapes = {name: jax.ShapeDtypeStruct(x[0], x[1], sharding=device) for name, x in content["leaves"].items()}
    state = manager.restore(LAST, args=ocp.args.Composite(state=ocp.args.StandardRestore(shapes)))["state"]
  return content["host"], jax.tree.map(np.asarray, state)


def assert_same_run(one, other, rtol=1e-6, atol=1e-6):
  """Rollouts, counts and host values are equal; floats within the tolerances, if any."""
  assert texts(one) == texts(other) and len(texts(one)) == 4
  assert len(rows(one)) == len(rows(other)) == LAST
  for row, there in zip(rows(one), rows(other)):
    # The gap is itself a last bit.
    gaps = {name: row.pop(name) - there.pop(name) if row[name] else 0 for name in ("gap_mean", "gap_max")}
    assert max(map(abs, gaps.values())) <= (3e-6 if rtol else 0)
    floats = {name: value for name, value in row.items() if isinstance(value, float)}
    assert {**row, **floats} == {**there, **{name: pytest.approx(there[name], rel=rtol, abs=0) for name in floats}}
  (host, state), (host_there, state_there) = checkpoint(one), checkpoint(other)
  assert host == host_there and state.keys() == state_there.keys()
  for name, leaf in state.items():
    assert leaf.dtype == state_there[name].dtype
    np.testing.assert_allclose(leaf, state_there[name], rtol=rtol, atol=atol, err_msg=name)


def test_two_processes_one_of_which_is_killed_end_as_one_process_that_is_not(alone, cache, tmp_path):
  """The first, whose end the other sees at once: it answers the others' heartbeats."""
  run = Run(prepared(tmp_path / "run", alone), cache)
  ((killed, _, _), (status, _, err)), seconds = run.stop(signal.SIGKILL, 0, step=1)
  assert killed == -signal.SIGKILL and status not in (0, None) and seconds < 60
  assert re.search(
    r"^error: process 0 is gone .*\. Start all processes again with the same command: they go on from step \d$",
    err,
    re.MULTILINE,
  ), err
  first, second = run.finish(2)
  assert "restored step" in first[1] and "report: " in first[1]
  assert "restored" not in second[1] and "reward" not in second[1]  # one process speaks
  assert_same_run(run.workdir, alone)


def test_processes_that_disagree_are_refused(cache, tmp_path):
  run = Run(tmp_path / "run", cache)
  run.start(2, [], ["--config.seed=5"])
  for status, _, err in run.results():
    assert status == 1
    assert err.splitlines()[-1] == (
      "error: the processes have different settings: config.seed (0 in process 0, 5 in process 1); "
      "start all with the same command"
    )
  assert not run.workdir.exists()


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_two_processes_are_one(alone, cache, tmp_path, mesh):
  one = alone
  if mesh != (8, 1):
    one = prepared(tmp_path / "one", alone)
    Run(one, cache, mesh).finish(1)
  run = Run(prepared(tmp_path / "two", alone), cache, mesh)
  run.finish(2)
  assert_same_run(run.workdir, one)


@pytest.fixture(scope="module")
def together(alone, cache, tmp_path_factory):
  """A finished run of two processes that nothing interrupted."""
  run = Run(prepared(tmp_path_factory.mktemp("together") / "run", alone), cache)
  run.finish(2)
  return run.workdir


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_is_named_and_a_restart_goes_on_to_the_bit(alone, together, cache, tmp_path, victim):
  """Of the second only the heartbeat stops."""
  run = Run(prepared(tmp_path / "run", alone), cache)
  results, seconds = run.stop(signal.SIGKILL, victim, step=3)
  status, _, err = results[1 - victim]
  assert status not in (0, None) and seconds < 60
  assert re.search(rf"^error: process {victim} is gone .* they go on from step \d$", err, re.MULTILINE), err
  run.finish(2)
  assert_same_run(run.workdir, together, rtol=0, atol=0)


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_after_the_same_step(alone, together, cache, tmp_path):
  run = Run(prepared(tmp_path / "run", alone), cache)
  results, _ = run.stop(signal.SIGTERM, 1, step=1)
  assert [status for status, _, _ in results] == [143, 143], results
  assert re.search(r"stopped by SIGTERM after \d steps, which are saved", results[0][1])
  run.finish(2)
  assert_same_run(run.workdir, together, rtol=0, atol=0)


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_is_gone_on_from_by_one(alone, cache, tmp_path):
  run = Run(prepared(tmp_path / "run", alone), cache)
  run.stop(signal.SIGTERM, 0, step=1)
  run.finish(1)
  assert_same_run(run.workdir, alone)


@pytest.mark.slow
def test_a_checkpoint_of_which_one_process_cannot_read_its_part_is_left_by_all(alone, together, cache, tmp_path):
  shutil.copytree(together, tmp_path / "run")
  run = Run(tmp_path / "run", cache)
  largest = max((run.workdir / f"checkpoints/{LAST}/state").rglob("*"), key=lambda path: path.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 16
  largest.write_bytes(content)
  run.start(2)
  for status, _, err in run.results():
    assert status == 1 and f"error: checkpoint {LAST} in" in err and "allow_previous" in err
  run = Run(run.workdir, cache, **{"checkpoint.allow_previous": True})
  assert f"restored step {LAST - 1}" in run.finish(2)[0][1]
  assert_same_run(run.workdir, together, rtol=0, atol=0)

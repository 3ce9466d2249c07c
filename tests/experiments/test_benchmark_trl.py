import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).resolve().parents[2] / "experiments/benchmark_trl.py"


@pytest.fixture(scope="module")
def benchmark():
  spec = importlib.util.spec_from_file_location("benchmark_trl", FILE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(scope="module")
def model(benchmark, tmp_path_factory):
  folder = tmp_path_factory.mktemp("benchmark") / "model"
  benchmark.write_model(folder)
  return folder


def test_the_phases_of_a_step_add_up_to_it(benchmark, model):
  steps, phases = benchmark.ours(model, benchmark.random_prompts(3, 6), response=2, warmup=1)
  assert len(steps) == 2
  for n, step in enumerate(steps):
    assert step.wall == pytest.approx(sum(costs[n].wall for costs in phases.values()))
    assert step.cpu == pytest.approx(sum(costs[n].cpu for costs in phases.values()))


def test_prompts_are_the_same_in_every_process_and_hold_no_special_token(benchmark):
  prompts = benchmark.random_prompts(2, 50)
  assert prompts.shape == (2, benchmark.PROMPTS, 50)
  np.testing.assert_array_equal(prompts, benchmark.random_prompts(2, 50))
  assert prompts.min() > max(benchmark.PAD, benchmark.EOS) and prompts.max() < benchmark.VOCABULARY


def test_the_cpu_seconds_of_finished_children_count(benchmark):
  before = benchmark.now()
  subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
  assert (benchmark.now() - before).cpu >= 0.3


def test_the_ratio_is_theirs_over_ours(benchmark):
  ours, theirs = (benchmark.summary([benchmark.Cost(*c) for c in costs]) for costs in ([(1, 2), (2, 3)], [(6, 5)] * 3))
  row = {"prompt": 80, "response": 10, "ours": ours, "trl": theirs, "phases": {"update": ours}}
  row["ratio"] = {unit: theirs[unit] / ours[unit] for unit in ours}
  lines = benchmark.table([row]).splitlines()
  assert "| 80 + 10 | wall | 1.500 s | 6.000 s | 4.0 |" in lines
  assert "| 80 + 10 | cpu | 2.500 s | 5.000 s | 2.0 |" in lines
  assert "| 80 + 10 | least cpu | 2.000 s | 5.000 s | 2.5 |" in lines


def test_without_an_environment_for_the_peer_it_says_what_failed(benchmark, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(sys, "executable", "/bin/false")
  assert benchmark.main(["--venv", str(tmp_path / "peer")]) == 1
  said = capsys.readouterr().err
  assert f"error: no environment for TRL in {tmp_path / 'peer'}: `/bin/false -m venv" in said
  assert "--alone" in said


def test_a_peer_that_fails_is_quoted(benchmark, tmp_path):
  broken = tmp_path / "python"
  broken.write_text("#!/bin/sh\necho out of memory >&2\nexit 3\n")
  broken.chmod(0o755)
  with pytest.raises(RuntimeError, match=r"TRL failed at \[4, 2\] tokens:\nout of memory"):
    benchmark.run_peer(broken, {"lengths": [4, 2]})


def test_a_peer_of_another_version_is_refused(benchmark, tmp_path, monkeypatch):
  (tmp_path / "bin").mkdir()
  python = tmp_path / "bin/python"
  python.write_text(f"#!/bin/sh\necho '{json.dumps(['2.13.0+cpu', '5.23.0', '1.17.0'])}'\n")
  python.chmod(0o755)
  with pytest.raises(RuntimeError, match=r"'trl': '1\.17\.0'.*give another folder"):
    benchmark.peer_environment(tmp_path)

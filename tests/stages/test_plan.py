"""The plan of a small experiment on a small slice: compiled, and the numbers of its parts together."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwenlong_jax.kernels.schedule import ENVIRONMENT
from qwenlong_jax.stages import plan

ROOT = Path(__file__).resolve().parents[2]
AT_SIZE = [
  ("aepo_256k.py", "v5p:4x4x4", 16, 0.9),
  ("aepo_256k.py", "v6e:16x16", 64, 0.9),
  ("aepo_1m.py", "v5p:2x2x4", 16, 75 / 95.73),
]


def planned(folder, *arguments, status=0):
  """plan.json, and what is printed."""
  command = [sys.executable, str(ROOT / "experiments/plan.py"), f"--out={folder}", *arguments]
  done = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
  assert done.returncode == status, done.stderr[-4000:]
  return json.loads((folder / "plan.json").read_text()) if status == 0 else None, done.stdout + done.stderr


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@needs_libtpu
def test_a_plan_says_what_a_step_takes(tmp_path):
  small = ["--config.mesh.ring=2", "--config.model.dtype=bfloat16", "--config.model.remat=True"]
  found, said = planned(tmp_path, "--config=tiny.py", "--topology=v5p:2x2x1", "--config.mesh.data=2", *small)
  assert (found["chips"], found["data"], found["ring"], found["stage"]) == (4, 2, 2, "rl2")
  assert [program["name"] for program in found["programs"]] == ["learn", "sample", "relayout"]
  parameters = {program["kinds"]["parameters"] for program in found["programs"]}
  optimizer = {program["kinds"]["optimizer"] for program in found["programs"]}
  assert len(parameters) == 1 and optimizer.pop() == pytest.approx(2 * parameters.pop(), rel=1e-3)  # two moments
  assert all(size >= 0 for program in found["programs"] for size in program["kinds"].values())
  assert [phase["name"] for phase in found["times"]] == ["relayout", "prefill", "decode", "learn"]
  assert "chip-hours" in said and (tmp_path / "plan.png").stat().st_size > 10_000


def test_what_cannot_be_planned_is_said(tmp_path):
  for wrong, message in (
    (["--topology=v9:2x2"], "is not a chip of v5e, v5p, v6e"),
    (["--topology=v5p:2x2x1", "--stage=rl9"], "stage='rl9' is not one of the config's: rl1, rl2, rl3"),
  ):
    assert message in planned(tmp_path, "--config=tiny.py", *wrong, status=1)[1]


def test_gathers_are_counted_in_what_the_compiler_schedules():
  text = """
%called_computation.3 (p: f32[1]) -> f32[4] {
  %all-gather.1 = f32[4]{0} all-gather(%p), dimensions={0}
}

ENTRY %main (p: f32[1]) -> f32[4] {
  %all-gather.2 = f32[4]{0} all-gather(%p), dimensions={0}
  %s = (f32[1], f32[4]) all-gather-start(%p), dimensions={0}
  %d = f32[4]{0} all-gather-done(%s)
}
"""
  assert plan.gathers(text) == (3, 2)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("config, topology, ring, most", AT_SIZE)
def test_the_recipe_fits_at_size_and_hides_its_ring(config, topology, ring, most, tmp_path):
  found, said = planned(tmp_path, f"--config={config}", f"--topology={topology}", f"--config.mesh.ring={ring}")
  print(said)
  for program in found["programs"]:
    assert sum(program["kinds"].values()) < most * found["hbm"]
    assert program["hidden"] == program["transfers"]
  learn = found["programs"][0]
  assert learn["transfers"] == 3 and learn["asynchronous"] == learn["gathers"] > 0

"""The plan of a small experiment on a small slice: compiled, and the numbers of its parts together."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import small

from qwenlong_jax.kernels.schedule import ENVIRONMENT
from qwenlong_jax.parallelism.chips import chip_of
from qwenlong_jax.parallelism.mesh import make_mesh
from qwenlong_jax.stages import plan
from qwenlong_jax.stages.setup import Design, model_of

ROOT = Path(__file__).resolve().parents[2]
AT_SIZE = [
  ("aepo_256k.py", "v5p:4x4x4", 16, 0.9),
  ("aepo_256k.py", "v6e:16x16", 64, 0.9),
  ("aepo_1m.py", "v5p:2x2x4", 16, 0.9),
]
LEARN = {"aepo_1m.py": 75}  # GiB for learning, where less is promised than fits


def planned(folder, *arguments, status=0):
  """plan.json, and what is printed."""
  command = [sys.executable, str(ROOT / "experiments/plan.py"), f"--out={folder}", *arguments]
  done = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
  assert done.returncode == status, done.stderr[-4000:]
  return json.loads((folder / "plan.json").read_text()) if status == 0 else None, done.stdout + done.stderr


needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@needs_libtpu
def test_a_plan_says_what_a_step_takes(tmp_path):
  small = ["--config.stages.rl2.below=1.0", "--config.mesh.ring=2"]
  small += ["--config.model.dtype=bfloat16", "--config.model.remat=True"]
  found, said = planned(tmp_path, "--config=tiny.py", "--topology=v5p:2x2x1", "--config.mesh.data=2", *small)
  assert (found["chips"], found["data"], found["ring"], found["stage"]) == (4, 2, 2, "rl2")
  assert [program["name"] for program in found["programs"]] == ["learn", "sample", "relayout"]
  parameters = {program["kinds"]["parameters"] for program in found["programs"]}
  optimizer = {program["kinds"]["optimizer"] for program in found["programs"]}
  assert len(parameters) == 1 and optimizer.pop() == pytest.approx(2 * parameters.pop(), rel=1e-3)  # two moments
  assert all(size >= 0 for program in found["programs"] for size in program["kinds"].values())
  assert [phase["name"] for phase in found["times"]] == ["relayout", "prefill", "decode", "learn"]
  # 10,000 examples are 500 batches of 20: as much sampling as 500 steps do.
  sampling = sum(phase["seconds"] for phase in found["times"] if phase["name"] in ("prefill", "decode"))
  assert f"among up to 10,000 examples, {500 * sampling * 4 / 3600:,.0f} chip-hours" in said
  assert "chip-hours" in said and (tmp_path / "plan.png").stat().st_size > 10_000


def test_what_cannot_be_planned_is_said(tmp_path):
  for wrong, message in (
    (["--topology=v9:2x2"], "is not a chip of v5e, v5p, v6e"),
    (["--topology=v5p:2x2x1", "--use=0.5"], "--use=0.5 must be three fractions"),
    (["--topology=v5p:2x2x1", "--stage=rl9"], "stage='rl9' is not one of the config's: rl1, rl2, rl3"),
  ):
    assert message in planned(tmp_path, "--config=tiny.py", *wrong, status=1)[1]


def test_what_the_compiler_refuses_does_not_fit_and_is_said(monkeypatch):
  """No memory of a chip is so small as to have the compiler itself refuse a small model: it is played."""
  config = small.get_config()
  nothing = {"kinds": {}, "hidden": 0, "transfers": 0, "gathers": 0, "asynchronous": 0, "compiled_in": 0.0}
  refused = partial(plan.Program, refused=True, **nothing)
  monkeypatch.setattr(plan, "ProcessPoolExecutor", lambda *_: InThisProcess())
  monkeypatch.setattr(plan, "compiled_apart", lambda *arguments: refused(arguments[-1]))
  design = Design(config=config, model=model_of(config), mesh=make_mesh(1))
  found = plan.compiled(design, "v5p:2x2x1", "one", chip_of("v5p:2x2x1"), plan.Use())
  assert not found.fits and plan.excess(found) == float("inf")
  assert found.advice[0].startswith("learn takes more than the compiler grants: a ring longer than 1")


class InThisProcess:
  """A pool that is none."""

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def map(self, function, items):
    return map(function, items)


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
    assert not program["refused"]
    assert sum(program["kinds"].values()) < most * found["hbm"]
    assert program["hidden"] == program["transfers"]
  learn = found["programs"][0]
  assert sum(learn["kinds"].values()) < LEARN.get(config, found["hbm"])
  assert learn["transfers"] == 3 and learn["asynchronous"] == learn["gathers"] > 0


@needs_libtpu
@pytest.mark.slow
def test_what_attention_gave_waits_on_the_hosts(tmp_path):
  arguments = ("--config=aepo_4b.py", "--topology=v5p:2x2x2")
  taken = {}
  for offload in (False, True):
    found, said = planned(tmp_path / str(offload), *arguments, f"--config.model.offload={offload}")
    print(said)
    learn = found["programs"][0]
    assert not learn["refused"] and learn["hidden"] == learn["transfers"] > 0
    taken[offload] = sum(learn["kinds"].values())
  assert taken[True] < 0.85 * taken[False]

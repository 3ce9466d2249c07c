"""The order of stages and evaluations, with stand-ins for both."""

import dataclasses
import json
import signal

import jax.numpy as jnp
import numpy as np
import pytest
import small

from qwenlong_jax import rewards
from qwenlong_jax.stages import evaluate, recipe, reinforce, warmstart


@pytest.fixture
def calls(monkeypatch, tmp_path):
  """What the recipe does, in order; a stage only counts its steps and writes a row for each."""
  seen = []

  def train(shop, session, learner, state, *, name="warmstart", number=0, first=0):
    steps = shop.config.warmstart.steps if name == "warmstart" else shop.config.stages[name].steps
    seen.append(f"{name} {first}+{steps}")
    for index in range(int(state.step), steps):
      state = dataclasses.replace(state, step=jnp.int32(index + 1))
      session.finish_step(first + index, state, {"stage": name}, 1, last=index + 1 == steps)
    return state

  def evaluation(shop, learner, params, *, name, step, number):
    seen.append(f"evaluate {number:02d}-{name} at {step}")

  monkeypatch.setattr(warmstart, "train", train)
  monkeypatch.setattr(reinforce, "train", train)
  monkeypatch.setattr(evaluate, "run", evaluation)
  monkeypatch.setattr(recipe, "report", lambda workdir: workdir / "report.html")
  handler = signal.getsignal(signal.SIGTERM)
  yield seen
  signal.signal(signal.SIGTERM, handler)


def test_each_stage_is_evaluated_where_it_ends(calls, tmp_path):
  recipe.run(small.get_config().lock(), tmp_path)
  assert calls == [
    "warmstart 0+6",
    "evaluate 01-warmstart at 6",
    "one 6+4",
    "evaluate 02-one at 10",
    "two 10+4",
    "evaluate 03-two at 14",
  ]
  calls.clear()
  recipe.run(small.get_config().lock(), tmp_path)
  assert calls == ["evaluate 03-two at 14"]


def test_without_a_warm_start_the_model_it_starts_from_is_evaluated_first(calls, tmp_path):
  config = small.get_config()
  config.warmstart.steps, config.stages.two.steps = 0, 0
  recipe.run(config.lock(), tmp_path)
  assert calls == ["evaluate 00-base at 0", "one 0+4", "evaluate 01-one at 4"]


def test_a_run_may_end_with_a_stage_and_go_on_later(calls, tmp_path):
  config = small.get_config().lock()
  for _ in range(2):  # the second time after its last evaluation: whether that is on disk is for `evaluate` to see
    recipe.run(config, tmp_path, until="warmstart")
  assert calls == ["warmstart 0+6", "evaluate 01-warmstart at 6", "evaluate 01-warmstart at 6"]
  calls.clear()
  recipe.run(config, tmp_path)
  assert calls[0] == "evaluate 01-warmstart at 6" and calls[1] == "one 6+4"
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == list(range(14))


@pytest.mark.slow
def test_rows_over_a_ring_train_as_on_one_device(tmp_path, monkeypatch):
  """A warm start, and a step that samples on the same mesh and learns what it sampled."""
  monkeypatch.setattr(rewards, "score", small.coin)
  rows = {}
  for ring in (1, 4):
    config = small.get_config()
    config.mesh.ring = ring
    config.model.remat = True
    config.warmstart.steps, config.stages.one.steps, config.stages.two.steps = 3, 1, 0
    recipe.run(config.lock(), tmp_path / str(ring))
    rows[ring] = [json.loads(line) for line in (tmp_path / str(ring) / "metrics.jsonl").read_text().splitlines()]
  alone, together = ([row["nll"] for row in rows[ring] if row["stage"] == "warmstart"] for ring in (1, 4))
  np.testing.assert_allclose(together, alone, rtol=1e-4)
  (step,) = (row for row in rows[4] if row["stage"] == "one")
  assert step["gap_max"] < 1e-4

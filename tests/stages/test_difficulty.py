"""What a stage trains on when it chooses by difficulty: the rules, and a choice that was interrupted.

The rewards are a coin that the response itself decides, of the model that `small` describes.
"""

import dataclasses
import json
import shutil
import signal
from functools import partial

import jax
import numpy as np
import pytest
import small
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_jax import rewards
from qwenlong_jax.checkpoints import Checkpoints
from qwenlong_jax.data import loading
from qwenlong_jax.rollout.engine import Engine
from qwenlong_jax.rollout.weights import for_decoding
from qwenlong_jax.stages import difficulty, recipe, reinforce, setup
from qwenlong_jax.stages.answering import answer
from qwenlong_jax.stages.session import Session
from qwenlong_jax.types import TASKS

SIZE, GROUP = 10, 4


def test_kept_is_what_is_failed_and_of_a_task_that_is_solved_the_hardest():
  tasks = ["a", "a", "a", "b", "b", "b"]
  rates = [0.25, 0.5, 1.0, 1.0, 0.75, 0.75]
  assert difficulty.choose(tasks, rates, below=0.5, bins=0, per_bin=0, seed=0) == [0, 4, 5]
  assert difficulty.choose(tasks, rates, below=1.0, bins=0, per_bin=0, seed=0) == [0, 1, 4, 5]
  assert difficulty.choose(tasks, [1.0] * 6, below=1.0, bins=0, per_bin=0, seed=0) == list(range(6))


@given(
  st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4)), min_size=1, max_size=40),
  st.sampled_from([0.0, 0.3, 1.0]),
  st.sampled_from([0, 1, 3]),
)
def test_every_task_stays_and_bins_are_equal(drawn, below, bins):
  tasks, rates = [task for task, _ in drawn], [right / 4 for _, right in drawn]
  places = difficulty.choose(tasks, rates, below, bins, 2, seed=1)
  assert places == sorted(set(places)) and {tasks[n] for n in places} == set(tasks)
  for task in set(tasks):
    mine = [rates[n] for n in places if tasks[n] == task]
    if below and min(rate for rate, other in zip(rates, tasks) if other == task) < below:
      assert max(mine) < below
    if bins:
      of_task = [rate for rate, other in zip(rates, tasks) if other == task]
      left = [rate for rate in of_task if not below or rate < below or rate == min(of_task)]
      counts = (np.histogram(some, bins, (0, 1))[0] for some in (mine, left))
      assert all(here == min(2, there) for here, there in zip(*counts))


@pytest.fixture
def stage(tmp_path, monkeypatch):
  """stage(name, ...) -> (workshop, session, state, ask) of a run in its own workdir, before the stage "two"."""
  monkeypatch.setattr(rewards, "score", small.coin)
  handler = signal.getsignal(signal.SIGTERM)
  config = small.get_config()
  config.mesh.data, config.data.shards = 5, 3
  config.batch.prompts, config.batch.group = SIZE, GROUP
  config.stages.two.update({"below": 1.0, "bins": 2, "per_bin": 7})
  config.lock()

  whole = setup.workshop(config, tmp_path / "straight")
  sampling, slots = setup.sampling_of(whole, 8), setup.prompt_slots(whole, 100)
  learner, key = reinforce.make_learner(whole), jax.random.key(7)
  state, engine = learner.create_state(jax.random.key(1)), Engine(learner.graph, whole.mesh)

  def made(name):
    shop = dataclasses.replace(whole, workdir=tmp_path / name)
    session = Session(Checkpoints(tmp_path / name / "checkpoints", keep=1), None, every=3, total=4)
    ask = partial(answer, shop, engine, key, size=SIZE, slots=slots, group=GROUP, sampling=sampling, what="choosing")
    return shop, session, state, ask

  yield made
  signal.signal(signal.SIGTERM, handler)


def contents(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_choice_that_was_stopped_goes_on_and_one_that_is_lost_is_an_error(stage, capsys):
  shop, session, state, ask = stage("straight")
  chosen = difficulty.training_data(shop, session, state, "two", ask)
  rates_file = chosen.with_name(f"{chosen.name}.rates.jsonl")
  rates = [rate for line in rates_file.read_text().splitlines() for rate in json.loads(line)]
  every = loading.read_all(setup.data_folder(shop, "train", 100, shop.config.data.examples))
  assert len(rates) == len(every) == 150 and set(rates) <= {0, 0.25, 0.5, 0.75, 1}

  # Kept is what the rates say; they are the mean rewards of what the policy answers.
  kept = [every[n] for n in difficulty.choose([example.task for example in every], rates, 1.0, 2, 7, shop.config.seed)]
  assert loading.read_all(chosen) == kept and {example.task for example in kept} == set(TASKS)
  last = next(ask(for_decoding(state.params, shop.mesh, shop.dtype), every, begin=140))
  texts = [[shop.tokenizer.response_text(tokens) for tokens in group] for group in last.sampled.tokens]
  coins = [sum(small.coin(None, text).reward for text in group) / GROUP for group in texts]
  assert coins == rates[140:] and len(set(coins)) > 1
  assert f"two: pass@4 {sum(rates) / 150:.3f}; {len(kept)} of 150 examples kept: " in capsys.readouterr().out

  shop, session, state, ask = stage("stopped")
  session.terminated = True
  with pytest.raises(SystemExit) as stopped:
    difficulty.training_data(shop, session, state, "two", ask)
  again = shop.workdir / "data" / chosen.name
  part = again.with_name(rates_file.name)
  assert stopped.value.code == 143 and not again.exists()
  assert part.read_text() == rates_file.read_text()[: len(part.read_text())] and part.read_text().count("\n") == 1
  with part.open("a") as file:
    file.write("[0.25, 0.")  # killed while it wrote
  session.terminated = False
  assert difficulty.training_data(shop, session, state, "two", ask) == again
  assert contents(again) == contents(chosen) and part.read_bytes() == rates_file.read_bytes()

  # Chosen once: in mid-stage neither again nor otherwise.
  later = dataclasses.replace(state, step=state.step + 1)
  assert difficulty.training_data(shop, session, later, "two", ask) == again
  shutil.rmtree(again)
  with pytest.raises(ValueError, match=r"is not there after 1 of its steps; copy it back"):
    difficulty.training_data(shop, session, later, "two", ask)


def test_rates_that_are_no_numbers_are_an_error(tmp_path):
  (tmp_path / "rates.jsonl").write_text('[0.5]\n{"a": 1}\n')
  with pytest.raises(ValueError, match=r"rates\.jsonl is damaged .* delete it"):
    difficulty.kept_rates(tmp_path / "rates.jsonl")


def test_bad_settings_are_named(tmp_path):
  config = small.get_config()
  config.stages.two.below = 1.5
  with pytest.raises(ValueError, match=r"stages\.two\.below=1\.5"):
    recipe.check(config)
  config.stages.two.below, config.stages.two.bins = 1.0, 4
  with pytest.raises(ValueError, match=r"stages\.two\.bins=4 and per_bin=0: give both"):
    recipe.check(config)

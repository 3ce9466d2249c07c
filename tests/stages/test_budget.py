"""How many groups are sampled at once, under limits that the compiler's own numbers put between two of them."""

import dataclasses

import pytest
import small

from qwenlong_jax.parallelism.mesh import make_mesh
from qwenlong_jax.rollout.engine import Engine
from qwenlong_jax.rollout.sampling import Sampling
from qwenlong_jax.stages import budget, reinforce
from qwenlong_jax.stages.setup import Design, model_of

PROMPTS, SLOTS, GROUP = 6, 64, 2
SAMPLING = Sampling(0.7, 0.95, 512, (0,), 0)


@pytest.fixture(scope="module")
def design():
  config = small.get_config()
  return Design(config=config, model=model_of(config), mesh=make_mesh(1))


@pytest.fixture(scope="module")
def learner(design):
  return reinforce.make_learner(design)


def limited(design, gib):
  config = design.config.copy_and_resolve_references()
  config.mesh.memory = gib
  return dataclasses.replace(design, config=config)


def sampler(design, learner):
  return budget.sampler(design, learner, PROMPTS, SLOTS, group=GROUP, sampling=SAMPLING)


def takes(learner, engine):
  params = learner.abstract_state().params
  lowered = engine.lower(params, (PROMPTS, SLOTS), group=GROUP, sampling=SAMPLING)
  return (budget.device_bytes(learner.abstract_state()) + budget.memory_of(lowered).total) / budget.GIB


def test_as_many_groups_at_once_as_the_memory_bears(design, learner, capsys):
  three = takes(learner, Engine(learner.graph, design.mesh, lanes=3))
  assert sampler(limited(design, 1.001 * three), learner).lanes == 3
  assert f"with 3 groups at once (of {PROMPTS} that were wanted)" in capsys.readouterr().out


def test_where_nobody_knows_the_memory_all_groups_run_at_once(design, learner):
  assert sampler(design, learner).lanes == PROMPTS


def test_what_cannot_fit_is_refused_with_the_numbers(design, learner):
  state = budget.device_bytes(learner.abstract_state()) / budget.GIB
  with pytest.raises(ValueError, match=r"not one group of 64 prompt and 2 x 512 response slots fits into .* GiB"):
    sampler(limited(design, 1.01 * state), learner)
  with pytest.raises(ValueError, match=r"a step with rows of 64 slots takes .* GiB, of .* raise mesh\.ring=1, set"):
    budget.check_update(limited(design, 1.01 * state), learner, 2, 64)
  budget.check_update(limited(design, 1.0), learner, 2, 64)


def test_the_state_is_counted_by_what_a_device_holds(design):
  halves = reinforce.make_learner(dataclasses.replace(design, mesh=make_mesh(2))).abstract_state()
  whole = reinforce.make_learner(design).abstract_state()
  assert 0.5 * budget.device_bytes(whole) <= budget.device_bytes(halves) < 0.51 * budget.device_bytes(whole)

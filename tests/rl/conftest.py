"""Tiny learners whose optimizer keeps the last gradient, and batches of random rollouts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from qwenlong_jax.models.presets import PRESETS
from qwenlong_jax.models.qwen3 import Qwen3
from qwenlong_jax.parallelism.mesh import make_mesh
from qwenlong_jax.rl.learner import Learner
from qwenlong_jax.types import Prompts, Rollout

SIZES = {"vocab_size": 37, "hidden_size": 16, "moe_intermediate_size": 8, "intermediate_size": 24, "head_dim": 8}
KINDS = {
  "dense": {"num_experts": 0, "num_experts_per_tok": 0, "moe_intermediate_size": 0},
  "moe": {},
  "moe, experts grouped": {"num_experts": 12},
}
TEMPERATURE = 0.7


def config_of(kind):
  return dataclasses.replace(PRESETS["tiny"], **(SIZES | KINDS[kind]))


def keep_gradient():
  """A transformation whose state is the gradient it was last given."""
  return optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params), lambda gradient, state, params: (gradient, gradient)
  )


def make_learner(kind, devices=1, micro_rows=None, ratio=None, ring=1, remat=False, offload=False):
  """AdamW with weight decay over the gradient kept in optimizer[0]; `devices` on the data axis times `ring`."""
  return made(kind, devices, micro_rows, ratio, ring, remat, offload)


@functools.cache
def made(kind, devices, micro_rows, ratio, ring, remat, offload):
  return Learner(
    lambda key: Qwen3(config_of(kind), rngs=nnx.Rngs(key), remat=remat, offload=offload),
    optax.chain(keep_gradient(), optax.adamw(1e-2, weight_decay=0.1)),
    make_mesh(devices, ring),
    temperature=TEMPERATURE,
    micro_rows=micro_rows,
    ratio=ratio,
    offload=offload,
    ring_block=2,
  )


def make_params(kind, seed=0):
  """Random parameters, norms around 1, large enough that every part of the model matters."""
  random = np.random.default_rng(seed)
  draw = lambda x: jnp.asarray(random.normal(0, 0.2, x.shape) + (x.ndim == 1), x.dtype)  # noqa: E731
  return jax.tree.map(draw, make_learner(kind).abstract_state().params)


def make_rollout(prompts, group, slots, responses, seed=0):
  """Ragged prompts and responses in numpy, the shortest and the longest of each among them."""
  random = np.random.default_rng(seed)
  size = (prompts, group, responses)
  length = random.integers(1, slots + 1, prompts)
  answer = random.integers(1, responses + 1, (prompts, group))
  length[0], length[-1], answer[0, 0], answer[-1, -1] = slots, 1, responses, 1
  inside = np.arange(responses) < answer[..., None]
  return Rollout(
    prompts=Prompts(np.where(np.arange(slots) < length[:, None], random.integers(1, 37, (prompts, slots)), 0), length),
    tokens=np.where(inside, random.integers(1, 37, size), 0),
    length=answer,
    logprob=np.where(inside, random.normal(-3, 1, size), 0).astype(np.float32),
    entropy=np.where(inside, random.gamma(2, 0.2, size), 0).astype(np.float32),
    stopped=np.ones((prompts, group), bool),
    prefill_tokens=np.int32(prompts * slots),
    decode_steps=np.int32(responses),
  )


@pytest.fixture(scope="session")
def tiny_config():
  return config_of


@pytest.fixture(scope="session")
def learner():
  """(kind, devices=1, micro_rows=None, ratio=None, ring=1, remat=False, offload=False) -> Learner, each made once."""
  return make_learner


@pytest.fixture(scope="session")
def params():
  """(kind, seed=0) -> parameters in numpy's random numbers."""
  return make_params


@pytest.fixture(scope="session")
def rollout():
  """(prompts, group, slots, responses, seed=0) -> Rollout."""
  return make_rollout


@pytest.fixture(scope="session")
def gradient():
  """(learner, params, batch) -> the gradient of the loss, as an update computes it."""

  def run(learner, params, batch):
    state, metrics = learner.update(learner.state_of(jax.tree.map(jnp.copy, params)), batch)
    assert metrics.applied
    return jax.device_get(state.optimizer[0])

  return run


@pytest.fixture(scope="session")
def close():
  """(got, want, tolerance): each leaf's error is small beside the leaf."""

  def check(got, want, tolerance):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
      error = np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)
      assert error < tolerance, (jax.tree_util.keystr(path), error)

  return check

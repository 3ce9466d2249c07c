"""The sampler (prefill, then decoding with a cache) and the trainer (packed branches) compute one function."""

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
from qwenlong_jax.rl import packing
from qwenlong_jax.rl.learner import Learner
from qwenlong_jax.rollout.engine import Engine
from qwenlong_jax.rollout.sampling import Sampling
from qwenlong_jax.rollout.weights import for_decoding
from qwenlong_jax.types import Prompts

P, G, S, R, V = 8, 4, 24, 12, 61
SHAPE = {"vocab_size": V, "hidden_size": 32, "moe_intermediate_size": 16, "head_dim": 16}
# As sharp as the small recipe's training makes them: attention scores to about 30, logits to 40.
SHARPENED = {"q_norm": 3.0, "k_norm": 3.0, "norm": 6.0}


def create(config, dtype, key):
  return Qwen3(config, rngs=nnx.Rngs(key), dtype=dtype, param_dtype=dtype)


@pytest.fixture(scope="module", params=[8, 12], ids=["every expert", "experts grouped"])
def gap(request):
  """dtype -> |sampler - trainer| of every sampled token's log-probability."""
  config = dataclasses.replace(PRESETS["tiny"], **SHAPE, num_experts=request.param, initializer_range=0.25)

  sharpened = set()

  def sharpen(path, x):
    name = next((name for name in SHARPENED if f"'{name}'" in jax.tree_util.keystr(path)), "")
    sharpened.update({name} - {""})
    return x * SHARPENED.get(name, 1.0)

  @functools.cache
  def measure(dtype):
    with jax.enable_x64(dtype == "float64"):
      learner = Learner(
        functools.partial(create, config, jnp.dtype(dtype)), optax.sgd(0.1), make_mesh(1), temperature=0.7
      )
      # The same numbers in both precisions.
      draw = np.random.default_rng(0).normal
      shapes = learner.abstract_state().params
      params = jax.tree.map(
        lambda x: jnp.asarray(np.float32(draw(0, 0.25, x.shape) + (x.ndim < 3 and x.shape[0] != V)), x.dtype), shapes
      )
      params = jax.tree_util.tree_map_with_path(sharpen, params)
      assert sharpened == set(SHARPENED)
      random = np.random.default_rng(1)
      prompts = Prompts(
        random.integers(0, V - 1, (P, S)).astype(np.int32), random.integers(S // 2, S + 1, P).astype(np.int32)
      )
      sampling = Sampling(0.7, 0.95, R, (0, 1, 2, 3), V - 1)
      sampled = jax.device_get(
        Engine(learner.graph, make_mesh(1)).generate(params, prompts, jax.random.key(2), group=G, sampling=sampling)
      )
      mask = packing.response_mask(sampled)
      batch = packing.with_weights(packing.shared_prefix(sampled, V - 1), np.ones(mask.shape), mask)
      logprob = jax.device_get(learner.update(learner.state_of(params), batch)[1].logprob)
      at, inside = packing.slots_of(batch, mask)
      assert logprob.dtype == sampled.logprob.dtype == dtype
      return np.abs(logprob[at] - sampled.logprob[inside]), sampled

  return measure


@pytest.mark.parametrize(
  "dtype, devices, ring",
  [
    ("float32", 1, 1),
    pytest.param("bfloat16", 2, 2, marks=pytest.mark.slow),
    pytest.param("float32", 2, 2, marks=pytest.mark.slow),
    pytest.param("bfloat16", 1, 1, marks=pytest.mark.slow),
  ],
)
def test_with_its_experts_replayed_the_learner_routes_as_the_sampler_did(dtype, devices, ring):
  """Routers that are all but tied, so that rounding decides: the two choose differently, unless told."""
  config = dataclasses.replace(PRESETS["tiny"], **SHAPE, num_experts=12, initializer_range=0.25)
  mesh = make_mesh(devices, ring)
  learner = Learner(
    functools.partial(create, config, jnp.dtype(dtype)), optax.sgd(0.1), mesh, temperature=0.7, ring_block=16
  )
  params, tie = learner.create_state(jax.random.key(0)).params, {"float32": 1e-7, "bfloat16": 1e-2}[dtype]
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: x[..., :1] + tie * x if "router" in jax.tree_util.keystr(path) else x, params
  )
  random = np.random.default_rng(1)
  prompts = Prompts(random.integers(0, V - 1, (P, S)).astype(np.int32), np.full(P, S, np.int32))
  engine = Engine(learner.graph, mesh, record=True, lanes=P // devices // 2, ring_block=8)
  weights = for_decoding(params, mesh, jnp.dtype(dtype))
  sampled = jax.device_get(
    engine.generate(weights, prompts, jax.random.key(2), group=G, sampling=Sampling(0.7, 0.95, R, (0, 1, 2, 3), V - 1))
  )
  mask = packing.response_mask(sampled)
  batch = packing.with_weights(packing.shared_prefix(sampled, V - 1), np.ones(mask.shape), mask)
  at, inside = packing.slots_of(batch, mask)

  def gap(batch):
    return np.abs(learner.update(learner.state_of(params), batch)[1].logprob[at] - sampled.logprob[inside])

  free, told = gap(dataclasses.replace(batch, experts=None)), gap(batch)
  print(f"{dtype} {ring=}: {free.max():.2g} nats, told {told.max():.2g}")
  assert told.max() < {"float32": 1e-4, "bfloat16": 0.1}[dtype]
  assert free.max() > 5 * told.max()


def test_without_rounding_they_are_one_function(gap):
  difference, sampled = gap("float64")
  assert P * G < len(difference) < P * G * R and sampled.logprob.min() < -2
  assert difference.max() < 1e-10


def test_in_float32_they_differ_by_rounding(gap):
  """Scores near 30 are rounded to 2e-6, and the softmax amplifies that: the typical token, then the worst."""
  difference, _ = gap("float32")
  assert np.median(difference) < 1e-5
  assert difference.max() < 2e-4

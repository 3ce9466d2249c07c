"""Tiny random models, whose logits are spread enough for sampling to matter."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

from qwenlong_jax.models.presets import PRESETS
from qwenlong_jax.models.qwen3 import Qwen3

SIZES = {"vocab_size": 37, "hidden_size": 16, "moe_intermediate_size": 8, "intermediate_size": 24, "head_dim": 8}
KINDS = {
  "dense": {"num_experts": 0, "num_experts_per_tok": 0, "moe_intermediate_size": 0},
  "moe": {},
  "dense, then moe, experts grouped": {"num_experts": 12, "mlp_only_layers": (0,)},
}


@functools.cache
def make(kind):
  config = dataclasses.replace(PRESETS["tiny"], **(SIZES | KINDS[kind]))
  graph, shapes = nnx.split(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0))))
  random = np.random.default_rng(0)
  draw = lambda x: jax.numpy.asarray(random.normal(0, 0.4, x.shape) + (x.ndim == 1), x.dtype)  # noqa: E731
  return graph, jax.tree.map(draw, shapes)


@pytest.fixture(scope="session")
def tiny():
  """kind -> (graph, parameters) of a 2-layer model."""
  return make

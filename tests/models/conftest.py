"""Random tiny Qwen3 models of transformers, and models of ours with given weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwenlong_jax.models import qwen3
from qwenlong_jax.models.presets import PRESETS, to_hf

SIZES = {"vocab_size": 97, "hidden_size": 32, "moe_intermediate_size": 16, "intermediate_size": 48, "head_dim": 16}
DENSE = {"num_experts": 0, "num_experts_per_tok": 0, "moe_intermediate_size": 0}


def tiny_config(kind="moe", **changes):
  """A configuration of 2 layers, "moe" or "dense", with the given fields changed."""
  return dataclasses.replace(PRESETS["tiny"], **(SIZES | (DENSE if kind == "dense" else {}) | changes))


def random_model(config, seed=0):
  """A model of transformers in float32 whose weights, norms included, are random."""
  import torch
  from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

  torch.manual_seed(seed)
  kind = Qwen3MoeConfig if config.num_experts else Qwen3Config
  model = AutoModelForCausalLM.from_config(kind(**to_hf(config)), attn_implementation="eager").eval()
  with torch.no_grad():
    for name, weight in model.named_parameters():
      weight.copy_(1 + 0.2 * torch.randn_like(weight) if "norm" in name else 0.2 * torch.randn_like(weight))
  return model


def model_with(config, params):
  """Our model holding the parameters."""
  graph, _ = nnx.split(nnx.eval_shape(lambda: qwen3.Qwen3(config, rngs=nnx.Rngs(0))))
  return nnx.merge(graph, params)


def compute_logits(config, params, tokens, positions=None, segments=None):
  """Our float32 logits [B L V]; plain causal rows unless positions and segments are given."""
  tokens = jnp.asarray(tokens)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape) if positions is None else positions
  segments = jnp.zeros_like(tokens) if segments is None else segments
  return np.asarray(compiled(config)(params, tokens, jnp.asarray(positions), jnp.asarray(segments)))


@functools.cache
def compiled(config):
  """The forward pass of one configuration; kept, so that tests of equal shapes compile once."""

  @jax.jit
  def run(params, tokens, positions, segments):
    model = model_with(config, params)
    return model.logits(model(tokens, positions, segments))

  return run


@pytest.fixture(scope="session")
def tiny():
  return tiny_config


@pytest.fixture(scope="session")
def hugging_face():
  return random_model


@pytest.fixture(scope="session")
def merged():
  return model_with


@pytest.fixture(scope="session")
def our_logits():
  return compute_logits

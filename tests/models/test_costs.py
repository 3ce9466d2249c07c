"""Counted from the sizes, against published numbers, transformers, and the products of the programs themselves."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from qwenlong_jax.kernels.flash_attention.operands import RESULTS
from qwenlong_jax.models import costs
from qwenlong_jax.models.presets import PRESETS
from qwenlong_jax.models.qwen3 import Qwen3


@pytest.mark.parametrize(
  "name, total, active",
  [
    ("qwen3-30b-a3b-thinking-2507", 30.53e9, 3.35e9),
    ("qwen3-235b-a22b-thinking-2507", 235.09e9, 22.19e9),
    ("qwen3-4b", 4.02e9, 4.02e9),
    ("qwen3-4b-thinking-2507", 4.02e9, 4.02e9),
    ("qwen3-8b", 8.19e9, 8.19e9),
    ("qwen3-14b", 14.77e9, 14.77e9),
    ("qwen3-32b", 32.76e9, 32.76e9),
  ],
)
def test_published_models_have_their_published_numbers_of_parameters(name, total, active):
  count = costs.parameters(PRESETS[name])
  assert count.total == pytest.approx(total, rel=1e-3)
  assert count.active == pytest.approx(active, rel=1e-3)


@pytest.mark.parametrize("changes", [{}, {"mlp_only_layers": (0,), "tie_word_embeddings": False}, {"num_experts": 0}])
def test_parameters_are_counted_as_transformers_has_them(tiny, hugging_face, changes):
  config = tiny("moe", **changes)
  assert costs.parameters(config).total == sum(weight.numel() for weight in hugging_face(config).parameters())


def products(jaxpr) -> int:
  """FLOP of all matrix products of a jaxpr, those of loops as often as they run."""
  total = 0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    shapes = [variable.aval.shape for variable in equation.invars]
    if name == "dot_general":
      (contracted, _), _ = params["dimension_numbers"]
      total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[0][i] for i in contracted)
    assert name not in ("while", "cond"), "of unknown length"
    inside = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(params)]
    total += sum(products(x) for x in inside if hasattr(x, "eqns")) * (params["length"] if name == "scan" else 1)
  return total


def seen(q, k, v, segments, positions):
  """Attention that computes all pairs and nothing else."""
  group = q.shape[2] // k.shape[2]
  scores = jnp.einsum("blhd,bmhd->bhlm", q, jnp.repeat(k, group, 2))
  return jnp.einsum("bhlm,bmhd->blhd", scores, jnp.repeat(v, group, 2))


@pytest.mark.parametrize(
  "kind, changes",
  [
    ("dense", {"num_hidden_layers": 3}),
    ("dense", {"num_hidden_layers": 6}),  # so many layers are a loop
    ("moe", {"num_experts_per_tok": 8, "mlp_only_layers": (1,)}),  # few experts, of which all are computed
  ],
)
def test_a_forward_pass_computes_the_products_that_were_counted(tiny, kind, changes):
  config = tiny(kind, **changes)
  graph, params = nnx.split(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0))))
  rows, slots, words = 2, 24, 5

  def program(params, tokens):
    model = nnx.merge(graph, params)
    hidden = model(tokens, tokens, tokens, attention=seen)
    return model.logits(hidden[:, :words])

  tokens = jax.ShapeDtypeStruct((rows, slots), jnp.int32)
  found = products(jax.make_jaxpr(program)(params, tokens).jaxpr)
  assert found == costs.forward(config, rows * slots, rows * slots**2, rows * words)


@pytest.mark.parametrize("remat", [False, True])
def test_a_gradient_computes_the_products_that_were_counted(tiny, remat):
  """Of the layers; attention and head have backward passes of their own."""
  config = tiny("dense", num_hidden_layers=5)
  graph, params = nnx.split(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0), remat=remat)))

  def together(q, k, v, *_):
    return checkpoint_name(q + jnp.repeat(k * v, q.shape[2] // k.shape[2], 2), RESULTS)

  def loss(params, tokens):
    return nnx.merge(graph, params)(tokens, tokens, tokens, attention=together).sum()

  tokens = jax.ShapeDtypeStruct((2, 24), jnp.int32)
  found = products(jax.make_jaxpr(jax.grad(loss))(params, tokens).jaxpr)
  again = 2 * 48 * config.num_hidden_layers * config.hidden_size * config.intermediate_size  # the last product isn't
  assert found == costs.gradient(config, 48, 0, 0, remat) - again * remat


def test_pairs_are_those_of_the_mask():
  prompt, response, group = 7, 4, 3
  segment = np.repeat([0, 1, 2, 3], [prompt - 1, *[response] * group])
  position = np.concatenate([np.arange(prompt - 1), *[prompt - 1 + np.arange(response)] * group])
  shown = ((segment == 0) | (segment == segment[:, None])) & (position <= position[:, None])
  assert costs.shared_row(prompt, response, group) == (segment.size, shown.sum())
  alone = np.tril(np.ones((prompt - 1 + response,) * 2))
  assert costs.repeated_rows(prompt, response, group) == (group * len(alone), group * alone.sum())


def test_a_cache_has_the_bytes_that_were_counted(tiny):
  config = tiny("dense")
  tokens = jax.ShapeDtypeStruct((1, 6), jnp.int32)
  model = lambda t: Qwen3(config, rngs=nnx.Rngs(0)).prefill(t, t, t)[1]  # noqa: E731
  cache = jax.eval_shape(model, tokens)
  assert sum(x.size * x.dtype.itemsize for x in cache) == 6 * costs.cache_bytes(config, 4)


def test_experts_that_are_read_against_dealing_them():
  config, rng = PRESETS["qwen3-30b-a3b-thinking-2507"], np.random.default_rng(0)
  dealt = [len({e for _ in range(24) for e in rng.permutation(128)[:8]}) / 128 for _ in range(300)]
  assert costs.experts_read(config, 24) == pytest.approx(np.mean(dealt), abs=0.01)
  assert costs.experts_read(config, 1) == pytest.approx(8 / 128)

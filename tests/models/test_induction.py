"""The head start, measured: where the first layer's heads look."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwenlong_jax.models import qwen3
from qwenlong_jax.models.induction import look_back

LENGTH = 64


@pytest.fixture(scope="module")
def models(tiny):
  """The same random model without and with the head start, two query heads to each of two key-value heads."""
  config = tiny("moe", head_dim=16)

  @jax.jit
  def make(key):
    plain, helped = (qwen3.Qwen3(config, rngs=nnx.Rngs(key)) for _ in range(2))
    look_back(helped)
    return nnx.state(plain), nnx.state(helped)

  graph, _ = nnx.split(nnx.eval_shape(lambda: qwen3.Qwen3(config, rngs=nnx.Rngs(0))))
  return [nnx.merge(graph, state) for state in make(jax.random.key(0))]


def first_layer_attention(model):
  """[H L L]: what each query head of the first layer gives each slot, on random tokens."""
  tokens = np.random.default_rng(0).integers(0, model.config.vocab_size, (1, LENGTH))
  recorded = []
  record = lambda q, k, *_: recorded.append((q, k)) or q  # noqa: E731
  with jax.disable_jit():
    model(jnp.asarray(tokens), jnp.arange(LENGTH)[None], jnp.zeros((1, LENGTH), int), attention=record)
  q, k = (np.asarray(x[0], np.float64) for x in recorded[0])
  k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
  scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[2])
  scores = np.where(np.tri(LENGTH, dtype=bool), scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


def test_query_head_n_looks_back_by_n_plus_1(models):
  plain, helped = (first_layer_attention(model) for model in models)
  for head, distance in enumerate([1, 2, 3, 4]):
    back = np.diagonal(helped[head], -distance)
    assert back.mean() > 0.7 and back.min() > 0.4
    assert np.diagonal(plain[head], -distance).mean() < 0.2


def test_only_the_first_layers_queries_and_keys_and_one_embedding_dimension_change(models):
  plain, helped = (nnx.to_pure_dict(nnx.state(model)) for model in models)
  np.testing.assert_array_equal(plain["embedding"][:, 1:], helped["embedding"][:, 1:])
  assert len(np.unique(helped["embedding"][:, 0])) == 1
  same = jax.tree.map(lambda a, b: bool((a == b).all()), plain["runs"][0], helped["runs"][0])
  attention = same.pop("attention")
  assert all(jax.tree.leaves(same)) and attention["v"] and attention["o"]
  for name in ("q", "k", "q_norm", "k_norm"):
    one, two = plain["runs"][0]["attention"][name], helped["runs"][0]["attention"][name]
    assert not (one[0] == two[0]).all()
    np.testing.assert_array_equal(one[1:], two[1:])

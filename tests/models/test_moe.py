"""The expert layer against a loop over tokens and their experts in float64, both ways of computing it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_jax.models import moe

T, D, E, K, F = 11, 6, 5, 2, 4
NAMES = ("router", "gate", "up", "down")


@pytest.fixture(scope="module", params=["all_experts", "chosen_experts"])
def layer(request, tiny):
  """(renormalise, x, parameters, cotangent) -> (out, (gradient of x, gradients of the parameters)) of one way."""

  @functools.cache
  def compiled(renormalise):
    sizes = {"hidden_size": D, "moe_intermediate_size": F, "num_experts": E, "num_experts_per_tok": K}
    config = tiny("moe", **sizes, norm_topk_prob=renormalise)
    graph, _ = nnx.split(nnx.eval_shape(lambda: moe.MoE(config, nnx.Rngs(0))))

    @jax.jit
    def run(x, params, cotangent):
      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moe, "DENSE_UP_TO_EXPERTS", E if request.param == "all_experts" else E - 1)
        out, vjp = jax.vjp(lambda x, p: nnx.merge(graph, nnx.State(p))(x), x, params)
      return out, vjp(cotangent)

    return run

  return lambda renormalise, *args: compiled(renormalise)(*args)


def oracle(renormalise, x, params, cotangent):
  """Token by token, expert by expert; the backward pass by the chain rule."""
  x, cotangent = np.asarray(x, np.float64), np.asarray(cotangent, np.float64)
  router, gate, up, down = (np.asarray(params[name], np.float64) for name in NAMES)
  out, dx, grads = np.zeros_like(x), np.zeros_like(x), [np.zeros_like(y) for y in (router, gate, up, down)]
  for t in range(len(x)):
    logits = x[t] @ router
    chosen = np.argsort(-logits)[:K]
    others = chosen if renormalise else np.arange(len(logits))  # over whom the weights sum to 1
    p = np.zeros(len(logits))
    p[others] = np.exp(logits[others] - logits.max())
    p /= p.sum()
    dp = np.zeros(len(logits))
    for e in chosen:
      a, b = x[t] @ gate[e], x[t] @ up[e]
      s = 1 / (1 + np.exp(-a))
      out[t] += p[e] * (a * s * b) @ down[e]
      dp[e] = cotangent[t] @ ((a * s * b) @ down[e])
      h = p[e] * (down[e] @ cotangent[t])
      da, db = h * b * (s + a * s * (1 - s)), h * a * s
      grads[1][e] += np.outer(x[t], da)
      grads[2][e] += np.outer(x[t], db)
      grads[3][e] += np.outer(a * s * b, p[e] * cotangent[t])
      dx[t] += gate[e] @ da + up[e] @ db
    dlogits = p * (dp - p @ dp)
    grads[0] += np.outer(x[t], dlogits)
    dx[t] += router @ dlogits
  return out, dx, grads


def random_inputs(seed=0, favoured=()):
  """The first dimension of x is 1: the router's first row is each expert's bias, large where favoured."""
  random = np.random.default_rng(seed)
  make = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
  x, router = make(T, D), make(D, E)
  x[:, 0] = 1
  router[0, list(favoured)] += 8
  params = {"router": router, "gate": make(E, D, F), "up": make(E, D, F), "down": make(E, F, D)}
  return x, params, make(T, D)


@given(st.booleans(), st.sets(st.integers(0, E - 1)), st.integers(0, 99))
def test_each_token_gets_the_experts_its_router_finds_most_probable(layer, renormalise, favoured, seed):
  """Dropless: all tokens may choose the same two experts. The output and every gradient, the router's too."""
  inputs = random_inputs(seed, favoured)
  out, (dx, dparams) = layer(renormalise, *inputs)
  want, want_dx, want_dparams = oracle(renormalise, *inputs)
  assert np.linalg.norm(out - want) < 1e-5 * np.linalg.norm(want)
  assert np.linalg.norm(dx - want_dx) < 1e-4 * np.linalg.norm(want_dx)
  for name, wanted in zip(NAMES, want_dparams):
    assert np.linalg.norm(dparams[name] - wanted) < 1e-4 * max(np.linalg.norm(wanted), 1e-2), name


def test_the_experts_that_no_token_chose_learn_nothing(layer):
  _, (_, gradients) = layer(True, *random_inputs(0, favoured=(1, 3)))
  for name in ("gate", "up", "down"):
    moved = np.abs(np.asarray(gradients[name])).reshape(E, -1).max(1) > 0
    np.testing.assert_array_equal(moved, [False, True, False, True, False])


@given(st.lists(st.integers(0, E - 1), min_size=T * K, max_size=T * K))
def test_assignments_are_sorted_by_expert_and_keep_their_order(experts):
  order, sizes = moe.sort_by_expert(jnp.array(experts).reshape(T, K), E)
  np.testing.assert_array_equal(order, np.argsort(experts, kind="stable"))
  np.testing.assert_array_equal(sizes, np.bincount(experts, minlength=E))


@pytest.mark.parametrize("experts, way", [(8, "all_experts"), (9, "chosen_experts")])
def test_few_experts_are_all_computed_many_only_where_chosen(tiny, monkeypatch, experts, way):
  called = []
  for name in ("all_experts", "chosen_experts"):
    monkeypatch.setattr(moe, name, lambda x, *_, name=name: called.append(name) or x)
  layer = nnx.eval_shape(lambda: moe.MoE(tiny("moe", num_experts=experts), nnx.Rngs(0)))
  nnx.eval_shape(lambda layer: layer(jnp.zeros((3, 32))), layer)
  assert called == [way]

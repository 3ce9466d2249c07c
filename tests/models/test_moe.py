"""The expert layer against a loop over tokens and their experts in float64, both ways of computing it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

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
        patch.setattr(moe, "FEW_TOKENS", 0)
        out, vjp = jax.vjp(lambda x, p: nnx.merge(graph, nnx.State(p))(x, moe.Cut())[0], x, params)
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


PARALLEL = 8


@functools.cache
def parallel(devices):
  """(x, weights, experts, gate, up, down, cotangent) -> (out, gradients), tokens and experts cut over the devices."""
  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((devices,), ("experts",), devices=jax.devices()[:devices], axis_types=auto)
  run = functools.partial(moe.expert_parallel, axis="experts")
  sharded = jax.shard_map(run, mesh=mesh, in_specs=(P("experts"),) * 6, out_specs=P("experts"))

  @jax.jit
  def run(x, weights, experts, *matrices):
    *matrices, cotangent = matrices
    out, vjp = jax.vjp(lambda x, weights, *m: sharded(x, weights, experts, *m), x, weights, *matrices)
    return out, vjp(cotangent)

  return run


def parallel_oracle(x, weights, experts, gate, up, down, cotangent):
  """A token and a chosen expert at a time, in float64, the weights given."""
  x, weights, gate, up, down, cotangent = (np.asarray(y, np.float64) for y in (x, weights, gate, up, down, cotangent))
  out, *gradients = (np.zeros_like(y) for y in (x, x, weights, gate, up, down))
  dx, dweights, dgate, dup, ddown = gradients
  for t, chosen in enumerate(np.asarray(experts)):
    for e in chosen:
      a, b = x[t] @ gate[e], x[t] @ up[e]
      s = 1 / (1 + np.exp(-a))
      hidden, g = a * s * b, down[e] @ cotangent[t]
      out[t] += weights[t, e] * hidden @ down[e]
      dweights[t, e] += hidden @ g
      da, db = weights[t, e] * g * b * (s + a * s * (1 - s)), weights[t, e] * g * a * s
      dgate[e] += np.outer(x[t], da)
      dup[e] += np.outer(x[t], db)
      ddown[e] += np.outer(weights[t, e] * hidden, cotangent[t])
      dx[t] += gate[e] @ da + up[e] @ db
  return out, gradients


def parallel_inputs(choice, seed=0, dtype=np.float32):
  """24 tokens, 8 experts; each token chooses two of `choice`."""
  random = np.random.default_rng(seed)
  make = lambda *shape: jnp.asarray(random.normal(size=shape), dtype)  # noqa: E731
  tokens = 24
  experts = np.stack([random.permutation(choice)[:K] for _ in range(tokens)]).astype(np.int32)
  weights = np.zeros((tokens, PARALLEL))
  np.put_along_axis(weights, experts, random.uniform(0.1, 1, size=experts.shape), 1)
  matrices = make(PARALLEL, D, F), make(PARALLEL, D, F), make(PARALLEL, F, D)
  return make(tokens, D), jnp.asarray(weights, dtype), jnp.asarray(experts), *matrices, make(tokens, D)


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("choice", [range(8), (0, 1), (6, 7), (0, 2, 3, 5, 6, 7)], ids=str)
def test_experts_on_their_devices_make_of_the_tokens_what_they_make_on_one(devices, choice):
  """Dropless: all tokens may choose the same two experts, of one device; others then have nothing to do."""
  inputs = parallel_inputs(choice)
  (out, gradients), (want, want_gradients) = parallel(devices)(*inputs), parallel_oracle(*inputs)
  assert np.linalg.norm(out - want) < 1e-5 * np.linalg.norm(want)
  for name, got, wanted in zip(("x", "weights", *NAMES[1:]), gradients, want_gradients):
    assert np.linalg.norm(got - wanted) < 1e-5 * np.linalg.norm(wanted), name
  idle = np.setdiff1d(np.arange(PARALLEL), list(choice))
  assert not any(np.asarray(g)[idle].any() for g in gradients[2:])


def test_float64_stays_float64_round_the_ring():
  with jax.enable_x64(True):
    inputs = parallel_inputs(range(8), dtype=np.float64)
    (out, gradients), (want, want_gradients) = parallel(4)(*inputs), parallel_oracle(*inputs)
    for got, wanted in zip((out, *gradients), (want, *want_gradients)):
      assert np.linalg.norm(got - wanted) < 1e-14 * np.linalg.norm(wanted)


def test_cut_experts_need_an_axis_that_cuts_them():
  x, weights, experts, *matrices, _ = parallel_inputs(range(8))
  with pytest.raises(ValueError, match=r"axis='experts' is no mesh axis here; call expert_parallel inside a shard_map"):
    moe.expert_parallel(x, weights, experts, *matrices, axis="experts")
  with pytest.raises(ValueError, match=r"3 experts on each of the 2 devices of .* are not the 8 of weights"):
    parallel(2)(x, weights, experts, *(m[:6] for m in matrices), x)


@pytest.mark.parametrize(
  "tokens, experts, way",
  [(3, 8, "all_experts"), (3, 9, "chosen_experts"), (8, 16, "all_experts"), (7, 16, "chosen_experts"),
   (17, 16, "chosen_experts")],
)  # fmt: skip
def test_few_experts_are_all_computed_many_only_where_chosen(tiny, monkeypatch, tokens, experts, way):
  """Unless the tokens are few that choose nearly all."""
  called = []
  for name in ("all_experts", "chosen_experts"):
    monkeypatch.setattr(moe, name, lambda x, *_, name=name: called.append(name) or x)
  layer = nnx.eval_shape(lambda: moe.MoE(tiny("moe", num_experts=experts, num_experts_per_tok=4), nnx.Rngs(0)))
  nnx.eval_shape(lambda layer: layer(jnp.zeros((tokens, 32)), moe.Cut())[0], layer)
  assert called == [way]


@pytest.mark.parametrize("rows, own_rows", [(4, True), (24, True), (5, False)])
def test_a_layer_that_is_cut_is_the_whole_layer(tiny, rows, own_rows):
  """Over 4 devices of 2 experts of width 8, each with rows of its own, so few that they go round the ring or so many
  that the experts are gathered, or all with the same."""
  layer = moe.MoE(tiny("moe", num_experts=8, num_experts_per_tok=3, moe_intermediate_size=8), nnx.Rngs(0))
  graph, params = nnx.split(layer)
  devices = 4
  x = jax.random.normal(jax.random.key(1), (rows * devices if own_rows else rows, layer.router.shape[0]))
  mesh = jax.make_mesh((devices,), ("experts",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))
  specs = jax.tree_util.tree_map_with_path(
    lambda path, _: P() if "router" in jax.tree_util.keystr(path) else P("experts"), params
  )
  spread = P("experts") if own_rows else P()
  cut = jax.shard_map(
    lambda params, x: nnx.merge(graph, params)(x, moe.Cut("experts", own_rows)),
    mesh=mesh, in_specs=(specs, spread), out_specs=spread, check_vma=False,
  )  # fmt: skip
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(moe, "DENSE_UP_TO_EXPERTS", 0)
    for got, want in zip(jax.jit(cut)(params, x), layer(x, moe.Cut())):
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def whole_and_in_pieces(inputs, most=16):
  """Output and gradients of `inputs`, compiled with all rows at once, and with about `most` rows at a time."""

  def run(x, weights, experts, *matrices):
    *matrices, cotangent = matrices
    out, vjp = jax.vjp(lambda x, weights, *m: moe.chosen_experts(x, weights, experts, *m), x, weights, *matrices)
    return out, vjp(cotangent)

  whole = jax.jit(run).lower(*inputs).compile()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(moe, "PIECES_FROM", most)
    patch.setattr(moe, "PIECE", most)
    return whole, jax.jit(lambda *inputs: run(*inputs)).lower(*inputs).compile()


@pytest.mark.parametrize("rows", [16, 18], ids=["even", "the last piece is filled up"])
@pytest.mark.parametrize("choice", [range(8), (0, 1)], ids=str)
def test_pieces_of_tokens_make_what_all_make_at_once(choice, rows):
  inputs = parallel_inputs(choice)
  whole, pieces = whole_and_in_pieces(inputs, rows)
  want, got = (jax.tree.leaves(run(*inputs)) for run in (whole, pieces))
  for name, x, y in zip(("out", "x", "weights", *NAMES[1:]), got, want):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max(), err_msg=name)


def test_pieces_of_tokens_take_less_memory():
  """Forward and backward, beside operands and results: what all rows take is most of it, and a quarter is at hand."""
  random = np.random.default_rng(0)
  tokens, width, f, chosen = 512, 64, 32, 4
  make = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)  # noqa: E731
  experts = jnp.asarray(np.stack([random.permutation(PARALLEL)[:chosen] for _ in range(tokens)]), jnp.int32)
  matrices = make(PARALLEL, width, f), make(PARALLEL, width, f), make(PARALLEL, f, width)
  inputs = make(tokens, width), make(tokens, PARALLEL), experts, *matrices, make(tokens, width)
  whole, pieces = (
    run.memory_analysis().temp_size_in_bytes for run in whole_and_in_pieces(inputs, tokens * chosen // 4)
  )
  assert pieces < 0.6 * whole

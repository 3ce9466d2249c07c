"""Every implementation of grouped_matmul against one float64 product per group; its gradient likewise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_jax.kernels.grouped_matmul import (
  IMPLEMENTATIONS,
  blocks,
  by_group,
  collect,
  grouped_matmul,
  spread,
)

M, E, D, F = 19, 5, 6, 7
FORWARD, GRADIENT = 1e-5, 1e-4


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def run(request):
  """(rows, weights, sizes, cotangent) -> (out, (gradient of rows, gradient of weights))."""
  return compiled(request.param)


@functools.cache
def compiled(implementation):
  @jax.jit
  def run(rows, weights, sizes, cotangent):
    out, vjp = jax.vjp(lambda r, w: grouped_matmul(r, w, sizes, implementation=implementation), rows, weights)
    return out, vjp(cotangent)

  return run


def oracle(rows, weights, sizes, cotangent):
  rows, weights, cotangent = (np.asarray(x, np.float64) for x in (rows, weights, cotangent))
  out, drows, dweights = np.zeros_like(cotangent), np.zeros_like(rows), np.zeros_like(weights)
  ends = np.cumsum(sizes)
  for e, (start, end) in enumerate(zip(ends - sizes, ends)):
    out[start:end] = rows[start:end] @ weights[e]
    drows[start:end] = cotangent[start:end] @ weights[e].T
    dweights[e] = rows[start:end].T @ cotangent[start:end]
  return out, (drows, dweights)


def random_inputs(seed=0, dtype=jnp.float32):
  random = np.random.default_rng(seed)
  return [jnp.asarray(random.normal(size=shape), dtype) for shape in ((M, D), (E, D, F), (M, F))]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  """So that 19 rows are several blocks."""
  monkeypatch.setattr(blocks, "BLOCK", 4)


def check(run, sizes, inputs, forward=FORWARD, gradient=GRADIENT):
  rows, weights, cotangent = inputs
  out, gradients = run(rows, weights, jnp.asarray(sizes, jnp.int32), cotangent)
  want, want_gradients = oracle(rows, weights, np.asarray(sizes), cotangent)
  assert np.linalg.norm(np.asarray(out, np.float64) - want) < forward * np.linalg.norm(want)
  for got, wanted in zip(gradients, want_gradients):
    assert np.linalg.norm(np.asarray(got, np.float64) - wanted) < gradient * np.linalg.norm(wanted)
  return gradients


@st.composite
def partitions(draw):
  """Sizes of E groups of M rows in all; often some are empty."""
  cuts = sorted(draw(st.lists(st.sampled_from([0, 1, 4, 9, 9, 18, M]), min_size=E - 1, max_size=E - 1)))
  return np.diff([0, *cuts, M])


@given(partitions(), st.integers(0, 99))
def test_every_row_meets_the_weights_of_its_group(run, sizes, seed):
  check(run, sizes, random_inputs(seed))


@pytest.mark.parametrize("alone", [0, 2, E - 1])
def test_a_group_without_rows_gets_a_zero_gradient(run, alone):
  sizes = np.where(np.arange(E) == alone, M, 0)
  _, gradient = check(run, sizes, random_inputs())
  np.testing.assert_array_equal(np.asarray(gradient)[np.arange(E) != alone], 0.0)


@pytest.mark.parametrize("sizes", [[4, 0, 5, 0, 1], [0, 0, 0, 0, 0], [0, 16, 0, 0, 2]], ids=str)
def test_rows_beyond_the_last_group_are_nothing_even_if_they_are_not_numbers(run, sizes):
  inputs = random_inputs()
  rows, weights, cotangent = inputs
  inside = sum(sizes)
  out, (drows, dweights) = run(
    rows.at[inside:].set(jnp.nan), weights, jnp.asarray(sizes), cotangent.at[inside:].set(jnp.nan)
  )
  want, (want_drows, want_dweights) = oracle(*inputs[:2], np.asarray(sizes), cotangent)
  for got, wanted in zip((out, drows, dweights), (want, want_drows, want_dweights)):
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
  assert not np.asarray(out)[inside:].any() and not np.asarray(drows)[inside:].any()


def test_bfloat16_errs_by_its_rounding_only(run):
  check(run, [4, 0, 9, 5, 1], random_inputs(1, jnp.bfloat16), forward=2**-7, gradient=2**-7)


def test_without_a_name_the_door_takes_an_implementation_and_refuses_unknown_ones():
  rows, weights, _ = random_inputs()
  sizes = jnp.array([4, 0, 9, 5, 1])
  got, want = (jax.jit(functools.partial(grouped_matmul, implementation=name)) for name in (None, "reference"))
  np.testing.assert_allclose(got(rows, weights, sizes), want(rows, weights, sizes), atol=1e-5)
  with pytest.raises(ValueError, match="implementation='gmm' is not one of"):
    grouped_matmul(rows, weights, sizes, implementation="gmm")
  with pytest.raises(ValueError, match=r"rows.dtype=.*bfloat16.*, sizes.dtype=.*; cast the first two to one floating"):
    grouped_matmul(rows.astype(jnp.bfloat16), weights, sizes)


@given(st.lists(st.integers(-1, E), min_size=21, max_size=21))
def test_assignments_are_put_in_the_order_of_their_groups_and_keep_their_own(groups):
  """Those of no group (here -1 and E) stand behind."""
  got, place, sizes = jax.jit(by_group, static_argnums=1)(jnp.array(groups), E)
  bounded = [g if 0 <= g < E else E for g in groups]
  np.testing.assert_array_equal(got, np.argsort(bounded, kind="stable"))
  np.testing.assert_array_equal(place, np.argsort(got))
  np.testing.assert_array_equal(sizes, np.bincount(bounded, minlength=E + 1)[:E])


def test_spreading_and_collecting_are_each_others_transposes_without_a_scatter():
  """Against the matrix that says which token stands where; 7 tokens of 3 assignments."""
  tokens, chosen = 7, 3
  random = np.random.default_rng(0)
  places = by_group(jnp.asarray(random.integers(0, E, tokens * chosen)), E)[:2]
  matrix = np.eye(tokens)[np.asarray(places[0]) // chosen]
  x, rows = (random.normal(size=(n, D)).astype(np.float32) for n in (tokens, tokens * chosen))

  @jax.jit
  def run(x, rows):
    spreading, back = jax.vjp(lambda x: spread(x, *places, chosen), x)
    collecting, forth = jax.vjp(lambda rows: collect(rows, *places, chosen), rows)
    return spreading, back(rows)[0], collecting, forth(x)[0]

  wanted = matrix @ x, matrix.T @ rows, matrix.T @ rows, matrix @ x
  for got, want in zip(run(x, rows), wanted):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  assert "scatter" not in str(jax.make_jaxpr(run)(x, rows))


@pytest.mark.parametrize("rows, weights", [((0, D), (E, D, F)), ((M, 0), (E, 0, F)), ((M, D), (E, D, 0))])
def test_nothing_times_anything_is_nothing_and_has_a_gradient(run, rows, weights):
  sizes = jnp.full(E, rows[0] // E)
  out, (drows, dweights) = run(jnp.ones(rows), jnp.ones(weights), sizes, jnp.ones((rows[0], weights[2])))
  assert (out.shape, drows.shape, dweights.shape) == ((rows[0], weights[2]), rows, weights)
  assert not any(np.asarray(x).any() for x in (out, drows, dweights))


def test_the_door_refuses_integers_and_no_groups():
  with pytest.raises(ValueError, match="cast the first two to one floating type"):
    grouped_matmul(jnp.zeros((M, D), int), jnp.zeros((E, D, F), int), jnp.zeros(E, int))
  with pytest.raises(ValueError, match=r"weights.shape=\(0, .*at least one group"):
    grouped_matmul(jnp.zeros((M, D)), jnp.zeros((0, D, F)), jnp.zeros(0, int))


@pytest.mark.parametrize(
  "rows, weights, sizes",
  [((M, D + 1), (E, D, F), (E,)), ((M, D), (E, D, F), (E + 1,)), ((1, M, D), (E, D, F), (E,)), ((M, D), (D, F), (D,))],
)
def test_the_door_names_the_shapes(rows, weights, sizes):
  with pytest.raises(ValueError, match=r"rows.shape=.*weights.shape=.*sizes.shape=.*wanted \[M D\], \[E D F\], \[E\]"):
    grouped_matmul(jnp.zeros(rows), jnp.zeros(weights), jnp.zeros(sizes, int))

"""Every implementation of grouped_matmul against one float64 product per group; its gradient likewise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_jax.kernels.grouped_matmul import IMPLEMENTATIONS, grouped_matmul

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


def test_bfloat16_errs_by_its_rounding_only(run):
  check(run, [4, 0, 9, 5, 1], random_inputs(1, jnp.bfloat16), forward=2**-7, gradient=2**-7)


def test_without_a_name_the_door_takes_an_implementation_and_refuses_unknown_ones():
  rows, weights, _ = random_inputs()
  sizes = jnp.array([4, 0, 9, 5, 1])
  got, want = (jax.jit(functools.partial(grouped_matmul, implementation=name)) for name in (None, "reference"))
  np.testing.assert_allclose(got(rows, weights, sizes), want(rows, weights, sizes), atol=1e-5)
  with pytest.raises(ValueError, match="implementation='gmm' is not one of"):
    grouped_matmul(rows, weights, sizes, implementation="gmm")


@pytest.mark.parametrize(
  "rows, weights, sizes",
  [((M, D + 1), (E, D, F), (E,)), ((M, D), (E, D, F), (E + 1,)), ((1, M, D), (E, D, F), (E,)), ((M, D), (D, F), (D,))],
)
def test_the_door_names_the_shapes(rows, weights, sizes):
  with pytest.raises(ValueError, match=r"rows.shape=.*weights.shape=.*sizes.shape=.*wanted \[M D\], \[E D F\], \[E\]"):
    grouped_matmul(jnp.zeros(rows), jnp.zeros(weights), jnp.zeros(sizes, int))

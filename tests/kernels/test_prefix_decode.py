"""Every implementation of prefix_decode against a float64 softmax over [prefix, own suffix, self], branch by branch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_jax.kernels.prefix_decode import IMPLEMENTATIONS, prefix_decode

P, G, H, K, D, S, R = 2, 3, 4, 2, 8, 11, 5
FORWARD = 1e-5


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def run(request):
  return compiled(request.param)


@functools.cache
def compiled(implementation):
  return jax.jit(functools.partial(prefix_decode, implementation=implementation))


def random_inputs(seed=0, dtype=jnp.float32, heads=(H, K)):
  """q, k, v, prefix, suffix: all slots hold numbers, those past the lengths too."""
  h, kv = heads
  random = np.random.default_rng(seed)
  make = lambda *shape: jnp.asarray(random.normal(size=shape), dtype)  # noqa: E731
  pair = lambda *shape: (make(*shape), make(*shape))  # noqa: E731
  return make(P, G, h, D), *pair(P, G, kv, D), pair(P, kv, S, D), pair(P, G, kv, R, D)


def oracle(q, k, v, prefix, prefix_length, suffix, suffix_length):
  q, k, v, *caches = (np.asarray(x, np.float64) for x in (q, k, v, *prefix, *suffix))
  out = np.zeros_like(q)
  for p, g, h in np.ndindex(q.shape[:3]):
    n = h * k.shape[2] // q.shape[2]
    keys, values = (
      np.concatenate([before[p, n, : prefix_length[p]], after[p, g, n, : suffix_length[p, g]], new[p, g, n][None]])
      for before, after, new in zip(caches[:2], caches[2:], (k, v))
    )
    scores = keys @ q[p, g, h] / np.sqrt(q.shape[3])
    weights = np.exp(scores - scores.max())
    out[p, g, h] = weights @ values / weights.sum()
  return out


def check(run, inputs, prefix_length, suffix_length, tolerance=FORWARD):
  q, k, v, prefix, suffix = inputs
  got = run(q, k, v, prefix, jnp.asarray(prefix_length), suffix, jnp.asarray(suffix_length))
  want = oracle(q, k, v, prefix, prefix_length, suffix, suffix_length)
  assert got.dtype == v.dtype
  assert np.linalg.norm(np.asarray(got, np.float64) - want) < tolerance * np.linalg.norm(want)


@st.composite
def lengths(draw):
  prefix = draw(st.lists(st.integers(0, S), min_size=P, max_size=P))
  suffix = draw(st.lists(st.integers(0, R), min_size=P * G, max_size=P * G))
  return np.array(prefix), np.array(suffix).reshape(P, G)


@given(lengths(), st.integers(0, 99))
def test_a_branch_reads_its_prompt_its_own_suffix_and_itself(run, lengths, seed):
  check(run, random_inputs(seed), *lengths)


@pytest.mark.parametrize("heads", [(4, 4), (6, 1), (6, 3)])
def test_query_heads_read_the_keys_of_their_group(run, heads):
  check(run, random_inputs(1, heads=heads), np.array([S, 4]), np.full((P, G), 2))


def test_an_empty_cache_returns_the_new_value(run):
  q, k, v, prefix, suffix = random_inputs(2)
  out = run(q, k, v, prefix, jnp.zeros(P, int), suffix, jnp.zeros((P, G), int))
  np.testing.assert_allclose(out, np.repeat(v, H // K, axis=2), rtol=1e-6)


def test_slots_past_the_lengths_are_never_read(run):
  inputs = random_inputs(3)
  prefix_length, suffix_length = np.array([7, 2]), np.array([[0, 3, 5], [1, 1, 2]])
  q, k, v, prefix, suffix = inputs
  beyond = np.arange(S) >= prefix_length[:, None]
  wild_prefix = tuple(jnp.where(beyond[:, None, :, None], 1e8, x) for x in prefix)
  beyond = np.arange(R) >= suffix_length[:, :, None]
  wild_suffix = tuple(jnp.where(beyond[:, :, None, :, None], -1e8, x) for x in suffix)
  lengths = (jnp.asarray(prefix_length), jnp.asarray(suffix_length))
  np.testing.assert_array_equal(
    run(q, k, v, wild_prefix, lengths[0], wild_suffix, lengths[1]), run(q, k, v, prefix, lengths[0], suffix, lengths[1])
  )


def test_large_scores_do_not_overflow(run):
  q, k, v, prefix, suffix = random_inputs(4)
  inputs = (q * 30, k * 30, v, (prefix[0] * 30, prefix[1]), (suffix[0] * 30, suffix[1]))
  check(run, inputs, np.array([S, 4]), np.full((P, G), 2), tolerance=1e-4)


def test_bfloat16_errs_by_its_rounding_only(run):
  check(run, random_inputs(5, jnp.bfloat16), np.array([S, 4]), np.full((P, G), 3), tolerance=2**-6)


@pytest.mark.parametrize("implementation", sorted(set(IMPLEMENTATIONS) - {"reference"}))
def test_the_prefix_is_never_copied_for_each_branch(implementation):
  g, kv, s, d = 16, 2, 8192, 64
  new, cache = jax.ShapeDtypeStruct((1, g, kv, d), jnp.float32), jax.ShapeDtypeStruct((1, kv, s, d), jnp.float32)
  suffix = jax.ShapeDtypeStruct((1, g, kv, 4, d), jnp.float32)
  counts = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((1, g), jnp.int32)
  lowered = compiled(implementation).lower(new, new, new, (cache, cache), counts[0], (suffix, suffix), counts[1])
  prefix_bytes = 2 * kv * s * d * 4
  assert lowered.compile().memory_analysis().temp_size_in_bytes < prefix_bytes


def test_without_a_name_the_door_takes_an_implementation_and_refuses_unknown_ones():
  q, k, v, prefix, suffix = random_inputs()
  rest = (prefix, jnp.array([S, 4]), suffix, jnp.full((P, G), 2))
  default = jax.jit(prefix_decode)(q, k, v, *rest)
  np.testing.assert_allclose(default, compiled("reference")(q, k, v, *rest), atol=1e-5, rtol=0)
  with pytest.raises(ValueError, match="implementation='paged' is not one of"):
    prefix_decode(q, k, v, *rest, implementation="paged")


@pytest.mark.parametrize(
  "heads, change, message",
  [
    (3, {}, r"q.shape=\(2, 3, 3, 8\).*with K dividing H"),
    (H, {"k": (P, G + 1, K, D), "v": (P, G + 1, K, D)}, r"k.shape=\(2, 4, 2, 8\)"),
    (H, {"v": (P, G, K, D + 1)}, r"v.shape=\(2, 3, 2, 9\)"),
    (H, {"prefix": (P, K + 1, S, D)}, r"prefix \(2, 3, 11, 8\).*wanted \[P K S D\]"),
    (H, {"suffix": (P, G + 1, K, R, D)}, r"suffix \(2, 4, 2, 5, 8\)"),
  ],
)
def test_the_door_names_the_shape_that_is_wrong(heads, change, message):
  shapes = {"k": (P, G, K, D), "v": (P, G, K, D), "prefix": (P, K, S, D), "suffix": (P, G, K, R, D)} | change
  k, v, prefix, suffix = (jnp.zeros(shape) for shape in shapes.values())
  with pytest.raises(ValueError, match=message):
    prefix_decode(
      jnp.zeros((P, G, heads, D)), k, v, (prefix, prefix), jnp.ones(P, int), (suffix, suffix), jnp.zeros((P, G), int)
    )

"""The nucleus against sorting, what is drawn against the truncated softmax it should follow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenlong_jax.rollout.sampling import nucleus_threshold, sample

V = 12
UNIT = 1024  # probabilities in 1/1024: their sums are exact in float32, in whatever order they are added
threshold = jax.jit(nucleus_threshold)
draw = jax.jit(sample, static_argnums=(2, 3, 4))


def smallest_set(probs, top_p):
  """The most probable tokens of mass >= top_p, as few as possible, and whatever ties with the last of them."""
  order = np.argsort(-probs, kind="stable")
  mass = np.cumsum(probs[order].astype(np.float64))
  enough = np.nonzero(mass >= top_p)[0]
  last = probs[order[enough[0] if len(enough) else -1]]
  return probs >= last


@st.composite
def distributions(draw):
  """V probabilities in units, many of them equal, some 0."""
  parts = draw(st.lists(st.sampled_from([0, 0, 1, 2, 64, 64, 100]), min_size=V - 1, max_size=V - 1))
  parts.append(UNIT - sum(parts))
  if parts[-1] < 0:
    parts = [UNIT // 4] * 4 + [0] * (V - 4)
  return np.array(draw(st.permutations(parts)), np.float32) / UNIT


@settings(max_examples=200)
@given(distributions(), st.integers(1, UNIT))
def test_the_nucleus_is_the_smallest_set_of_that_mass_with_its_ties(probs, top):
  """`top` is often exactly the mass of a set: then that set suffices."""
  top_p = top / UNIT
  got = probs >= threshold(probs[None], top_p)[0]
  np.testing.assert_array_equal(got & (probs > 0), smallest_set(probs, top_p) & (probs > 0))


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.999), st.sampled_from([0.1, 1.0, 10.0, 50.0]))
def test_the_nucleus_of_any_softmax(seed, top_p, scale):
  logits = np.random.default_rng(seed).normal(0, scale, (4, V))
  probs = np.asarray(jax.nn.softmax(logits.astype(np.float32)))
  cut = np.asarray(threshold(probs, top_p))
  assert cut.shape == (4, 1)
  for row, t in zip(probs, cut):
    mass = np.sort(np.cumsum(np.sort(row)[::-1].astype(np.float64)))
    if np.abs(mass - top_p).min() > 1e-6:  # where rounding does not decide
      np.testing.assert_array_equal(row >= t, smallest_set(row, top_p))


def test_a_hand_worked_nucleus():
  probs = np.array([[0.5, 0.25, 0.125, 0.125]], np.float32)
  for top_p, kept in ((0.3, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.76, 4), (1.0, 4)):
    assert (probs >= threshold(probs, top_p)).sum() == kept, top_p


def test_a_threshold_is_one_of_the_probabilities():
  """Bisection ends on the very float: no token is lost or let in by a rounded bound."""
  probs = np.asarray(jax.nn.softmax(np.random.default_rng(0).normal(0, 3, (16, 1000)).astype(np.float32)))
  assert all(t in row for row, t in zip(probs, np.asarray(threshold(probs, 0.9))[:, 0]))


N = 40_000
LOGITS = np.log(np.array([0.4, 0.2, 0.15, 0.1, 0.06, 0.04, 0.02, 0.01, 0.01, 0.005, 0.003, 0.002], np.float32))


@functools.cache
def keys(count):
  return jax.random.split(jax.random.key(0), count)


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (1.0, 0.8), (0.7, 0.95), (2.0, 0.5)])
def test_tokens_are_drawn_in_proportion_within_the_nucleus_and_never_outside(temperature, top_p):
  tokens, *_ = draw(jnp.broadcast_to(LOGITS, (N, V)), keys(N), temperature, top_p)
  probs = np.exp(LOGITS.astype(np.float64) / temperature)
  probs /= probs.sum()
  wanted = np.where(smallest_set(probs, top_p), probs, 0)
  wanted /= wanted.sum()
  frequency = np.bincount(tokens, minlength=V) / N
  assert frequency[wanted == 0].sum() == 0
  assert (np.abs(frequency - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / N)).all()


def test_the_log_probability_is_of_the_whole_softmax_at_the_temperature():
  logits = np.random.default_rng(1).normal(0, 3, (64, V)).astype(np.float32)
  tokens, logprob, _ = draw(logits, keys(64), 0.7, 0.6)
  z = logits.astype(np.float64) / 0.7
  wanted = z - np.log(np.exp(z).sum(1, keepdims=True))
  np.testing.assert_allclose(logprob, wanted[np.arange(64), tokens], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature, entropy_temperature, at", [(0.7, 0.0, 0.7), (0.7, 1.3, 1.3), (0.0, 0.0, 1.0)])
def test_the_entropy_is_of_the_whole_softmax_at_its_own_temperature(temperature, entropy_temperature, at):
  logits = np.random.default_rng(1).normal(0, 3, (64, V)).astype(np.float32)
  _, _, entropy = draw(logits, keys(64), temperature, 0.6, entropy_temperature)
  p = np.exp(logits.astype(np.float64) / at)
  p /= p.sum(1, keepdims=True)
  np.testing.assert_allclose(entropy, -(p * np.log(p)).sum(1), rtol=1e-5, atol=1e-6)


def test_temperature_zero_takes_the_most_probable_token_whatever_the_key():
  logits = np.random.default_rng(2).normal(0, 3, (64, V)).astype(np.float32)
  logits[0] = 0.0  # a tie: the first
  tokens, logprob, _ = draw(logits, keys(64), 0.0, 0.9)
  np.testing.assert_array_equal(tokens, logits.argmax(1))
  wanted = logits - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
  np.testing.assert_allclose(logprob, wanted.max(1), rtol=1e-5, atol=1e-6)


def test_a_tiny_top_p_leaves_only_the_most_probable_token():
  logits = np.random.default_rng(3).normal(0, 1, (64, V)).astype(np.float32)
  tokens, *_ = draw(logits, keys(64), 1.0, 1e-6)
  np.testing.assert_array_equal(tokens, logits.argmax(1))


def test_a_row_depends_on_its_own_key_and_logits_only():
  logits = np.random.default_rng(4).normal(0, 1, (64, V)).astype(np.float32)
  together, *_ = draw(logits, keys(64), 1.0, 0.9)
  order = np.random.default_rng(5).permutation(64)
  shuffled, *_ = draw(logits[order], keys(64)[order], 1.0, 0.9)
  np.testing.assert_array_equal(shuffled, np.asarray(together)[order])

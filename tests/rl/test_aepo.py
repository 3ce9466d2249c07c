"""The entropy of a batch, the latch, and which samples are kept."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenlong_jax.rl.aepo import Band, batch_entropy, keep, latch

BAND = Band(0.1, 0.3)
ADVANTAGE = np.array([[1.0, -1.0, 0.0], [-0.5, 0.25, 0.25]])


@pytest.mark.parametrize("low, high", [(0.3, 0.1), (0.2, 0.2), (math.nan, 1.0), (0.1, math.nan)])
def test_a_band_must_be_a_band_and_says_what_it_was_given(low, high):
  with pytest.raises(ValueError, match=rf"low={low}.*high={high}"):
    Band(low, high)


def test_batch_entropy_is_the_mean_of_sequence_means_not_of_tokens():
  entropy = np.array([[1.0, 9.0, 9.0], [2.0, 4.0, 6.0], [5.0, 5.0, 5.0]])
  mask = np.array([[True, False, False], [True, True, True], [False, False, False]])
  assert batch_entropy(entropy, mask) == (1.0 + 4.0) / 2  # the mean over tokens would be 3.25


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.randoms(use_true_random=False))
def test_batch_entropy_equals_a_loop_over_sequences(B, R, random):
  entropy = np.array([[random.uniform(0, 3) for _ in range(R)] for _ in range(B)])
  lengths = [random.randint(0, R) for _ in range(B)]
  mask = np.arange(R)[None] < np.array(lengths)[:, None]
  means = [math.fsum(row[:n]) / n for row, n in zip(entropy, lengths) if n]
  got = batch_entropy(np.where(mask, entropy, np.nan), mask)  # what lies outside the mask is not looked at
  assert math.isnan(got) if not means else math.isclose(got, math.fsum(means) / len(means), rel_tol=1e-12)


def test_a_nan_token_is_not_hidden():
  assert math.isnan(batch_entropy(np.array([[0.1, np.nan], [0.2, 0.2]]), np.ones((2, 2), bool)))


def test_shapes_must_agree():
  with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
    batch_entropy(np.zeros((2, 3)), np.ones((3, 2), bool))


def test_the_latch_follows_a_hand_worked_run():
  table = [  # entropy of the batch, the latch that acts on this batch, NaN reported
    (0.20, 0, False),  # inside: still as at the start
    (0.30, 0, False),  # at the upper bound is not above it
    (0.31, 1, False),
    (0.20, 1, False),  # inside: remembered
    (0.10, 1, False),  # at the lower bound is not below it
    (math.nan, 1, True),
    (0.09, 0, False),
    (math.nan, 0, True),
    (0.29, 0, False),
    (math.inf, 1, False),
    (0.00, 0, False),
  ]
  s = 0
  for step, (entropy, wanted, nan) in enumerate(table):
    s, seen = latch(s, entropy, BAND)
    assert (s, seen) == (wanted, nan), f"step {step}"


@settings(deadline=None)
@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=30), st.sampled_from([0, 1]))
def test_the_latch_holds_the_side_that_was_left_last(entropies, start):
  s = start
  for entropy in entropies:
    s, _ = latch(s, entropy, BAND)
  outside = [e for e in entropies if e > 0.3 or e < 0.1]
  assert s == (int(outside[-1] > 0.3) if outside else start)


def test_a_latch_that_is_neither_0_nor_1_is_refused():
  with pytest.raises(ValueError, match="s=2"):
    latch(2, 0.2, BAND)


def test_the_paper_mode_masks_negatives_exactly_while_the_latch_is_set():
  for entropy in (0.0, 0.2, 0.5, math.nan):
    np.testing.assert_array_equal(keep(ADVANTAGE, 0, entropy, BAND), True)
    np.testing.assert_array_equal(
      keep(ADVANTAGE, 1, entropy, BAND, "paper"), [[True, False, True], [False, True, True]]
    )


@pytest.mark.parametrize("s", [0, 1])
@pytest.mark.parametrize("entropy, masks", [(0.31, True), (0.3, False), (0.2, False), (0.0, False), (math.nan, False)])
def test_the_stateless_mode_looks_at_this_batch_only(s, entropy, masks):
  wanted = ADVANTAGE >= 0 if masks else np.ones((2, 3), bool)
  np.testing.assert_array_equal(keep(ADVANTAGE, s, entropy, BAND, "stateless_high"), wanted)


@pytest.mark.parametrize("s", [0, 1])
@pytest.mark.parametrize(
  "entropy, masks", [(0.2, True), (0.1, False), (0.3, False), (0.05, False), (0.4, False), (math.nan, False)]
)
def test_the_readme_mode_keeps_only_positives_inside_the_band(s, entropy, masks):
  wanted = ADVANTAGE > 0 if masks else np.ones((2, 3), bool)
  np.testing.assert_array_equal(keep(ADVANTAGE, s, entropy, BAND, "readme"), wanted)


def test_an_unknown_mode_is_refused():
  with pytest.raises(ValueError, match="'latched'"):
    keep(ADVANTAGE, 0, 0.2, BAND, "latched")

"""The indicator of negative gradient clipping (eqs. 8, 9) against a loop over tokens."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenlong_jax.rl.clipping import MODES, indicator


def oracle(advantage, entropy, mask, mode, tau):
  B, R = entropy.shape
  result = np.ones((B, R), int)
  for i in range(B):
    tokens = [t for t in range(R) if mask[i, t]]
    for t in tokens:
      level = entropy[i, t] if mode.startswith("token") else sum(entropy[i, u] for u in tokens) / len(tokens)
      beyond = level > tau if mode.endswith("high") else level < tau
      if mode != "none" and advantage[i] < 0 and beyond:
        result[i, t] = 0
  return result


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(MODES), st.integers(1, 5), st.integers(1, 5), st.randoms(use_true_random=False))
def test_every_mode_equals_its_equation(mode, B, R, random):
  # Quarters are exact, so that entropies and means at tau occur and are decided exactly.
  entropy = np.array([[random.randint(0, 8) / 4 for _ in range(R)] for _ in range(B)])
  advantage = np.array([random.choice([-1.0, 0.0, 1.0]) for _ in range(B)])
  mask = np.array([[random.random() < 0.7 for _ in range(R)] for _ in range(B)])
  got = indicator(advantage, entropy, mask, mode, 1.0)
  np.testing.assert_array_equal(got, oracle(advantage, entropy, mask, mode, 1.0))


@pytest.mark.parametrize(
  "mode, silenced",
  [
    ("token_high", [[0, 0, 1], [0, 0, 0]]),
    ("token_low", [[1, 0, 0], [0, 0, 0]]),
    ("sequence_high", [[0, 0, 0], [0, 0, 0]]),
    ("sequence_low", [[0, 0, 0], [0, 0, 0]]),
  ],
)
def test_at_tau_nothing_is_silenced_nor_where_the_advantage_is_not_negative(mode, silenced):
  entropy = np.array([[0.5, 1.0, 1.5], [0.5, 1.0, 1.5]])  # both means are exactly tau
  got = indicator(np.array([-1.0, 1.0]), entropy, np.ones((2, 3), bool), mode, 1.0)
  np.testing.assert_array_equal(~got, np.array(silenced, bool))


def test_the_sequence_level_silences_all_of_a_response_the_token_level_a_part():
  entropy, mask = np.array([[0.1, 3.0, 9.0]]), np.array([[True, True, False]])
  np.testing.assert_array_equal(indicator(np.array([-1.0]), entropy, mask, "sequence_high", 1.0), [[0, 0, 1]])
  np.testing.assert_array_equal(indicator(np.array([-1.0]), entropy, mask, "token_high", 1.0), [[1, 0, 1]])


@pytest.mark.parametrize("mode", MODES)
def test_nan_entropies_and_empty_responses_silence_nothing(mode):
  entropy = np.array([[np.nan, np.nan], [5.0, 0.0]])
  got = indicator(np.array([-1.0, -1.0]), entropy, np.array([[True, True], [False, False]]), mode, 1.0)
  np.testing.assert_array_equal(got, True)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["token_high", "sequence_high"]), st.floats(0, 2), st.floats(0, 2))
def test_a_higher_threshold_silences_fewer_tokens(mode, a, b):
  entropy = np.linspace(0, 2, 12).reshape(4, 3)
  args = (-np.ones(4), entropy, np.ones((4, 3), bool), mode)
  assert (indicator(*args, min(a, b)) <= indicator(*args, max(a, b))).all()


def test_what_is_missing_or_wrong_is_named():
  args = (np.array([-1.0]), np.zeros((1, 2)), np.ones((1, 2), bool))
  with pytest.raises(ValueError, match="tau=None"):
    indicator(*args, "token_high")
  with pytest.raises(ValueError, match="tau=nan"):
    indicator(*args, "sequence_low", math.nan)
  with pytest.raises(ValueError, match="mode='token'"):
    indicator(*args, "token", 1.0)
  with pytest.raises(ValueError, match=r"\(2,\), \(1, 2\)"):
    indicator(np.zeros(2), *args[1:], "none")

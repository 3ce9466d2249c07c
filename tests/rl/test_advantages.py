"""Advantages against loops written from the equations, and their edge cases."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qwenlong_jax.rl.advantages import (
  advantages,
  batch_relative,
  group_relative,
  mean_only,
  task_relative,
  zero_variance_groups,
)

ESTIMATORS = {"task": task_relative, "group": group_relative, "batch": batch_relative, "mean": mean_only}


def oracle(reward, task, valid, scope, ddof):
  """Eq. 7 and its neighbours, sample by sample."""
  P, G = reward.shape
  result = [[0.0] * G for _ in range(P)]
  for p in range(P):
    group = [reward[p][g] for g in range(G) if valid[p][g]]
    if len(group) < 2 or max(group) == min(group):
      continue
    mean = math.fsum(group) / len(group)
    if scope == "mean":
      divisor = 1.0
    else:
      pool = []
      for q in range(P):
        if (scope == "task" and task[q] == task[p]) or (scope == "group" and q == p) or scope == "batch":
          pool += [reward[q][g] for g in range(G) if valid[q][g]]
      centre = math.fsum(pool) / len(pool)
      std = math.sqrt(math.fsum((r - centre) ** 2 for r in pool) / (len(pool) - ddof))
      if std < 1e-8:
        continue
      divisor = std + 1e-6
    for g in range(G):
      if valid[p][g]:
        result[p][g] = (reward[p][g] - mean) / divisor
  return np.array(result).reshape(P, G)


@st.composite
def batches(draw):
  P, G = draw(st.integers(1, 6)), draw(st.integers(1, 5))
  levels = st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0])
  reward = np.array(draw(st.lists(levels, min_size=P * G, max_size=P * G))).reshape(P, G)
  task = np.array(draw(st.lists(st.integers(0, 2), min_size=P, max_size=P)))
  valid = np.array(draw(st.lists(st.sampled_from([True, True, True, False]), min_size=P * G, max_size=P * G)))
  return reward, task, valid.reshape(P, G)


@pytest.mark.parametrize("scope", ESTIMATORS)
@pytest.mark.parametrize("ddof", [0, 1])
def test_every_estimator_equals_its_equation(scope, ddof):
  @settings(max_examples=60, deadline=None)
  @given(batches())
  def check(batch):
    got = advantages(*batch, scope, ddof)
    np.testing.assert_allclose(got, oracle(*batch, scope, ddof), rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(got, ESTIMATORS[scope](*batch, ddof=ddof))

  check()


def test_a_hand_worked_batch():
  # Task 0: rewards 1 0 | 1 1, mean .75, sum of squares .75, std (ddof 1) .5. Task 1: rewards 0 1, std sqrt(.5).
  reward = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
  got = task_relative(reward, np.array([0, 0, 1]), np.ones((3, 2), bool), ddof=1)
  np.testing.assert_allclose(got[0], [0.5 / 0.500001, -0.5 / 0.500001], rtol=1e-12)
  np.testing.assert_array_equal(got[1], [0.0, 0.0])  # zero variance itself, and yet counted in the std above
  np.testing.assert_allclose(got[2], np.array([-0.5, 0.5]) / (math.sqrt(0.5) + 1e-6), rtol=1e-12)


@pytest.mark.parametrize("scope", ESTIMATORS)
def test_equal_rewards_give_exactly_zero_where_their_mean_is_inexact(scope):
  reward = np.array([[0.1] * 6, [0.0, 1.0, 0.0, 1.0, 0.0, 0.0]])
  assert reward[0].mean() != 0.1 or reward[0].sum() / 6 != 0.1  # the subtraction alone would not be 0
  got = advantages(reward, np.array([0, 0]), np.ones((2, 6), bool), scope, 1)
  np.testing.assert_array_equal(got[0], 0.0)
  assert (got[1] != 0).all()


@pytest.mark.parametrize("scope", ESTIMATORS)
def test_a_group_of_one_learns_nothing(scope):
  got = advantages(np.array([[1.0], [0.0]]), np.array([0, 0]), np.ones((2, 1), bool), scope, 1)
  np.testing.assert_array_equal(got, 0.0)


def test_a_task_of_one_valid_sample_learns_nothing_and_disturbs_nobody():
  reward = np.array([[1.0, 0.0], [1.0, 0.0]])
  valid = np.array([[True, False], [True, True]])
  got = task_relative(reward, np.array([0, 1]), valid, ddof=1)
  np.testing.assert_array_equal(got[0], 0.0)
  alone = task_relative(reward[1:], np.array([1]), valid[1:], ddof=1)
  np.testing.assert_array_equal(got[1:], alone)
  assert got[1, 0] > 0 > got[1, 1]


@pytest.mark.parametrize("scope", ["task", "group", "batch"])
@pytest.mark.parametrize("gap, silent", [(1e-8, True), (4e-8, False)])
def test_a_std_below_1e_8_counts_as_none(scope, gap, silent):
  # Two values a gap apart: the std (ddof 1) is gap / sqrt(2), 0.7e-8 or 2.8e-8.
  got = advantages(np.array([[0.5, 0.5 + gap]]), np.array([3]), np.ones((1, 2), bool), scope, 1)
  assert (got == 0).all() == silent


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from(sorted(ESTIMATORS)), st.sampled_from([np.nan, np.inf, -7.0, 1e9]))
def test_what_an_invalid_sample_holds_does_not_matter(batch, scope, garbage):
  reward, task, valid = batch
  assume(not valid.all())
  got = advantages(np.where(valid, reward, garbage), task, valid, scope, 1)
  np.testing.assert_array_equal(got, advantages(reward, task, valid, scope, 1))
  np.testing.assert_array_equal(got[~valid], 0.0)


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from(sorted(ESTIMATORS)), st.randoms(use_true_random=False))
def test_the_order_of_prompts_and_of_samples_does_not_matter(batch, scope, random):
  reward, task, valid = batch
  P, G = reward.shape
  prompts, samples = random.sample(range(P), P), random.sample(range(G), G)
  shuffled = advantages(reward[prompts][:, samples], task[prompts], valid[prompts][:, samples], scope, 1)
  np.testing.assert_allclose(shuffled, advantages(reward, task, valid, scope, 1)[prompts][:, samples], atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from(sorted(ESTIMATORS)), st.sampled_from([-2.0, 0.25, 8.0]))
def test_a_constant_added_to_all_rewards_changes_nothing(batch, scope, shift):
  reward, task, valid = batch
  moved = advantages(reward + shift, task, valid, scope, 1)
  # 0.3 and 0.1 lose bits when shifted; a std of two near-equal rewards cannot occur among these levels.
  np.testing.assert_allclose(moved, advantages(reward, task, valid, scope, 1), atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from(sorted(ESTIMATORS)))
def test_advantages_of_a_group_sum_to_zero(batch, scope):
  np.testing.assert_allclose(advantages(*batch, scope, 1).sum(axis=1), 0.0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(batches())
def test_another_task_cannot_move_the_task_relative_advantage(batch):
  reward, task, valid = batch
  whole = task_relative(reward, task, valid)
  for name in np.unique(task):
    mine = task == name
    np.testing.assert_array_equal(whole[mine], task_relative(reward[mine], task[mine], valid[mine]))


def test_the_batch_std_does_see_the_other_tasks():
  reward, valid = np.array([[1.0, 0.0], [0.0, 0.0]]), np.ones((2, 2), bool)
  task = np.array([0, 1])
  assert batch_relative(reward, task, valid)[0, 0] > task_relative(reward, task, valid)[0, 0]


def test_zero_variance_groups_are_named():
  reward = np.array([[0.1, 0.1, 9.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
  valid = np.array([[True, True, False], [True, True, True], [True, False, False]])
  np.testing.assert_array_equal(zero_variance_groups(reward, valid), [True, False, True])


def test_an_empty_batch_has_empty_advantages():
  for scope in ESTIMATORS:
    assert advantages(np.zeros((0, 4)), np.zeros(0, int), np.zeros((0, 4), bool), scope, 1).shape == (0, 4)


def test_wrong_input_is_refused_with_its_value():
  ones = np.ones((2, 2), bool)
  with pytest.raises(ValueError, match=r"reward\[1, 0\] = nan"):
    task_relative(np.array([[0.0, 1.0], [np.nan, 1.0]]), np.array([0, 1]), ones)
  with pytest.raises(ValueError, match=r"\(2, 2\), \(3,\)"):
    task_relative(np.zeros((2, 2)), np.zeros(3, int), ones)
  with pytest.raises(ValueError, match="scope='prompt'"):
    advantages(np.zeros((2, 2)), np.zeros(2, int), ones, "prompt", 1)
  with pytest.raises(ValueError, match="ddof=2"):
    task_relative(np.array([[0.0, 1.0]]), np.array([0]), ones[:1], ddof=2)

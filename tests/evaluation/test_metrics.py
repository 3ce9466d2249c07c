import json

import numpy as np
import pytest

from qwenlong_jax.evaluation.metrics import bootstrap, paired_difference, summarize


def test_a_constant_has_no_uncertainty():
  found = bootstrap(np.full(20, 0.25))
  assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)


def test_the_interval_is_that_of_the_normal_approximation_when_prompts_are_many():
  values = np.random.default_rng(1).normal(2.0, 3.0, 2000)
  found = bootstrap(values)
  half = 1.959964 * values.std() / np.sqrt(values.size)
  assert found.mean == pytest.approx(values.mean(), abs=1e-12)
  assert found.low == pytest.approx(values.mean() - half, abs=0.05 * half)
  assert found.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_of_two_prompts_the_resampled_means_are_binomial():
  # The resampled mean of {0, 1} is 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4: a 40% interval lies on 1/2, a 60% one
  # reaches from 0 to 1.
  assert (bootstrap([0, 1], 0.4).low, bootstrap([0, 1], 0.4).high) == (0.5, 0.5)
  assert (bootstrap([0, 1], 0.6).low, bootstrap([0, 1], 0.6).high) == (0.0, 1.0)


def test_the_true_mean_is_covered_as_often_as_promised():
  rng = np.random.default_rng(2)
  draws = [bootstrap(rng.random(80) < 0.3, resamples=1000, seed=trial) for trial in range(400)]
  covered = np.mean([draw.low <= 0.3 <= draw.high for draw in draws])
  assert 0.91 <= covered <= 0.98  # 0.95, within the binomial error of 400 trials and of 80 prompts


def test_copies_of_a_sample_add_no_certainty():
  single = np.random.default_rng(3).random(50)
  assert bootstrap(np.repeat(single[:, None], 8, axis=1)).low == pytest.approx(bootstrap(single).low, abs=1e-12)


def test_samples_of_one_prompt_are_resampled_together():
  # All variance lies between prompts, so that resampling 400 single samples would give half the true width (sqrt(4)).
  rng = np.random.default_rng(4)
  values = rng.normal(size=(100, 1)) + 0.01 * rng.normal(size=(100, 4))
  clustered, pooled = bootstrap(values), bootstrap(values.ravel())
  assert (clustered.high - clustered.low) / (pooled.high - pooled.low) == pytest.approx(2.0, rel=0.05)


def test_pairing_removes_what_both_sides_share():
  rng = np.random.default_rng(5)
  difficulty = rng.normal(0, 10, 200)
  noise = rng.normal(0, 0.1, 200)
  found = paired_difference(difficulty, difficulty + 0.5 + noise)
  half = 1.96 * noise.std() / np.sqrt(200)
  assert found.excludes_zero
  assert found.low == pytest.approx(0.5 + noise.mean() - half, abs=0.1 * half)


def test_an_unchanged_model_shows_no_difference():
  values = np.random.default_rng(6).random((30, 4))
  found = paired_difference(values, values)
  assert (found.mean, found.low, found.high, found.excludes_zero) == (0.0, 0.0, 0.0, False)


def test_the_numbers_of_samples_may_differ_but_not_the_prompts():
  assert paired_difference([[0, 1], [1, 1]], [1, 1]).mean == 0.25
  with pytest.raises(ValueError, match="2 prompts before and 3 after"):
    paired_difference([0, 1], [0, 1, 1])


def test_blocks_do_not_show(monkeypatch):
  import qwenlong_jax.reporting.intervals as intervals

  values = np.random.default_rng(7).random(40)
  whole = bootstrap(values)
  monkeypatch.setattr(intervals, "BLOCK", 1000)
  assert bootstrap(values) == whole


@pytest.mark.parametrize("values", [[], [0.0, np.nan], np.zeros((2, 2, 2))])
def test_values_that_have_no_honest_mean_are_refused(values):
  with pytest.raises(ValueError):
    bootstrap(values)


def test_a_summary_holds_every_reward_and_is_json():
  found = summarize({"multi_hop": [[0, 1], [1, 1]], "corpus_numeric": [[0, 0]]})
  assert found["tasks"]["multi_hop"]["mean"] == 0.75
  assert found["tasks"]["multi_hop"]["rewards"] == [[0, 1], [1, 1]]
  assert found["overall"]["mean"] == pytest.approx(0.5)
  json.dumps(found, allow_nan=False)

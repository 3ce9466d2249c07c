"""Token weights against eq. 4 written as loops; the surrogate's value and gradient against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenlong_jax.rl.loss import surrogate, token_weights

NORMALIZERS = ["group", "batch", "sequence"]


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def objective(advantage, indicator, keep, mask, ratio, normalizer, drop):
  """J of eq. 4 (or DAPO's, GRPO's), prompt by prompt, sample by sample, token by token."""
  P, G, R = mask.shape
  prompts, batch_tokens = [], 0
  for p in range(P):
    samples = []
    for g in range(G):
      tokens = [t for t in range(R) if mask[p, g, t]]
      if not tokens or (drop and not keep[p, g]):
        continue
      learned = sum(advantage[p, g] * ratio[p, g, t] for t in tokens if indicator[p, g, t]) if keep[p, g] else 0.0
      samples.append((learned, len(tokens)))
    if samples:
      prompts.append(samples)
      batch_tokens += sum(n for _, n in samples)
  if not prompts:
    return 0.0
  if normalizer == "group":
    return np.mean([sum(s for s, _ in samples) / sum(n for _, n in samples) for samples in prompts])
  if normalizer == "batch":
    return sum(s for samples in prompts for s, _ in samples) / batch_tokens
  return np.mean([np.mean([s / n for s, n in samples]) for samples in prompts])


@st.composite
def batches(draw, max_prompts=4):
  P, G, R = draw(st.integers(1, max_prompts)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
  random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  length = random.integers(0, R + 1, (P, G))
  return (
    random.choice([-2.0, -0.5, 0.0, 0.25, 1.0], (P, G)),
    random.random((P, G, R)) < 0.8,
    random.random((P, G)) < 0.7,
    np.arange(R) < length[..., None],
  )


@settings(max_examples=150, deadline=None)
@given(batches(), st.sampled_from(NORMALIZERS), st.booleans(), st.integers(0, 99))
def test_the_sum_of_weight_times_ratio_is_the_objective(batch, normalizer, drop, seed):
  ratio = np.random.default_rng(seed).uniform(0.5, 2.0, batch[3].shape)
  weight = token_weights(*batch, normalizer, drop)
  np.testing.assert_allclose(np.sum(weight * ratio), objective(*batch, ratio, normalizer, drop), rtol=1e-12, atol=1e-14)


def test_the_group_normaliser_on_a_hand_worked_batch():
  # Prompt 0: responses of 1 and 3 tokens; prompt 1: of 2 and 2, its second not kept. Two prompts, 4 tokens each.
  mask = np.array([[[1, 0, 0], [1, 1, 1]], [[1, 1, 0], [1, 1, 0]]], bool)
  advantage = np.array([[8.0, -8.0], [16.0, -16.0]])
  indicator = np.ones((2, 2, 3), bool)
  indicator[0, 1, 1] = False
  keep = np.array([[True, True], [True, False]])
  wanted = [[[1, 0, 0], [-1, 0, -1]], [[2, 2, 0], [0, 0, 0]]]
  np.testing.assert_array_equal(token_weights(advantage, indicator, keep, mask), wanted)
  wanted[1][0] = [4, 4, 0]  # the masked sample's tokens leave the denominator; the silenced token never does
  np.testing.assert_array_equal(token_weights(advantage, indicator, keep, mask, "group", True), wanted)


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from(NORMALIZERS))
def test_masking_changes_no_other_weight(batch, normalizer):
  advantage, indicator, keep, mask = batch
  everything = token_weights(advantage, np.ones_like(indicator), np.ones_like(keep), mask, normalizer)
  learned = indicator & keep[..., None]
  np.testing.assert_array_equal(token_weights(*batch, normalizer), np.where(learned, everything, 0.0))


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from(NORMALIZERS))
def test_dropped_samples_might_never_have_been_there(batch, normalizer):
  advantage, indicator, keep, mask = batch
  gone = mask & keep[..., None]
  np.testing.assert_array_equal(
    token_weights(*batch, normalizer, True),
    token_weights(advantage, indicator, np.ones_like(keep), gone, normalizer),
  )


@settings(max_examples=60, deadline=None)
@given(batches(), st.sampled_from(NORMALIZERS), st.booleans(), st.integers(1, 3), st.randoms(use_true_random=False))
def test_neither_order_nor_padding_matters(batch, normalizer, drop, padding, random):
  advantage, indicator, keep, mask = batch
  prompts, samples = random.sample(range(len(mask)), len(mask)), random.sample(range(mask.shape[1]), mask.shape[1])
  plain = token_weights(*batch, normalizer, drop)
  shuffled = token_weights(*(x[prompts][:, samples] for x in batch), normalizer, drop)
  np.testing.assert_allclose(shuffled, plain[prompts][:, samples], rtol=1e-14)
  extra = ((0, padding), (0, 0))  # prompts without a response token, and longer rows
  padded = token_weights(
    np.pad(advantage, extra, constant_values=5.0),
    np.pad(indicator, (*extra, (0, padding)), constant_values=True),
    np.pad(keep, extra, constant_values=True),
    np.pad(mask, (*extra, (0, padding))),
    normalizer,
    drop,
  )
  np.testing.assert_array_equal(padded[: len(mask), :, : mask.shape[2]], plain)
  assert np.count_nonzero(padded) == np.count_nonzero(plain)


@settings(max_examples=40, deadline=None)
@given(batches(max_prompts=3), st.integers(1, 3))
def test_in_eq_4_every_prompt_has_the_same_say_however_long_it_is(batch, repeats):
  advantage, _, _, mask = batch
  whole = np.ones(mask.shape, bool)
  once = token_weights(np.ones_like(advantage), whole, whole[..., 0], mask)
  np.testing.assert_allclose(
    once.sum(axis=(1, 2)), mask.any(axis=(1, 2)) / max(1, mask.any(axis=(1, 2)).sum()), rtol=1e-12
  )
  longer = token_weights(
    np.ones_like(advantage), np.repeat(whole, repeats, 2), whole[..., 0], np.repeat(mask, repeats, 2)
  )
  np.testing.assert_allclose(longer.sum(axis=(1, 2)), once.sum(axis=(1, 2)), rtol=1e-12)


def test_where_no_sample_is_kept_every_weight_is_zero():
  negatives = token_weights(
    -np.ones((2, 2)), np.ones((2, 2, 3), bool), np.zeros((2, 2), bool), np.ones((2, 2, 3), bool)
  )
  assert not negatives.any()


def test_wrong_weights_are_refused():
  ok = (np.zeros((1, 2)), np.ones((1, 2, 3), bool), np.ones((1, 2), bool), np.ones((1, 2, 3), bool))
  with pytest.raises(ValueError, match="normalizer='token'"):
    token_weights(*ok, "token")
  with pytest.raises(ValueError, match=r"\(2, 1\)"):
    token_weights(np.zeros((2, 1)), *ok[1:])


def random_slots(seed=0, n=200):
  random = np.random.default_rng(seed)
  logprob = random.uniform(-3, -0.1, n)
  weight = random.choice([-0.7, 0.0, 0.4, 1.3], n)
  return logprob, logprob + random.normal(0, 0.4, n), weight


def loss(logprob, old, weight, **options):
  return jnp.sum(surrogate(logprob, old, weight, **options))


def test_on_policy_the_gradient_is_minus_the_weight(x64):
  logprob, old, weight = random_slots()
  value, gradient = jax.value_and_grad(loss)(jnp.array(logprob), old, weight)
  assert value.dtype == jnp.float64
  np.testing.assert_allclose(value, -weight.sum(), rtol=1e-12)
  np.testing.assert_allclose(gradient, -weight, rtol=1e-12)


def clipped_oracle(logprob, old, weight, low, high):
  """Value and gradient of -min(w r, w clip(r)), token by token."""
  values, gradients = [], []
  for l, o, w in zip(logprob, old, weight):
    r = float(np.exp(l - o))
    held = (w > 0 and high is not None and r > 1 + high) or (w < 0 and low is not None and r < 1 - low)
    bound = 1 + high if held and w > 0 else 1 - low if held else r
    values.append(-w * bound)
    gradients.append(0.0 if held else -w * r)
  return np.array(values), np.array(gradients)


@pytest.mark.parametrize("low, high", [(0.2, 0.28), (0.2, None), (None, 0.1), (0.0, 0.0)])
def test_clipping_equals_its_closed_form_and_holds_only_what_would_go_further(x64, low, high):
  logprob, old, weight = random_slots(1)
  values, gradients = clipped_oracle(logprob, old, weight, low, high)
  assert 0 < np.sum((gradients == 0) & (weight != 0)) < np.sum(weight != 0)
  got = surrogate(jnp.array(logprob), jnp.array(old), jnp.array(weight), low, high)
  np.testing.assert_allclose(got, values, rtol=1e-12)
  gradient = jax.grad(loss)(jnp.array(logprob), old, weight, clip_low=low, clip_high=high)
  np.testing.assert_allclose(gradient, gradients, rtol=1e-12)


def test_truncated_importance_sampling_scales_the_policy_gradient_by_the_capped_ratio(x64):
  logprob, old, weight = random_slots(2)
  factor = np.minimum(np.exp(logprob - old), 1.2)
  assert (factor == 1.2).any() and (factor < 1.2).any()
  value, gradient = jax.value_and_grad(loss)(jnp.array(logprob), old, weight, truncate=1.2)
  np.testing.assert_allclose(value, -(weight * factor).sum(), rtol=1e-12)
  np.testing.assert_allclose(gradient, -weight * factor, rtol=1e-12)


def test_the_gradient_reaches_the_logits_as_finite_differences_say(x64):
  """Of sum_t w_t log pi(y_t), and of the clipped loss, with respect to logits: central differences."""
  random = np.random.default_rng(3)
  logits, targets = random.normal(0, 1, (12, 5)), random.integers(0, 5, 12)
  weight = random.choice([-0.6, 0.9], 12)
  old = jax.nn.log_softmax(logits)[np.arange(12), targets] + random.normal(0, 0.3, 12)

  def logprob(z):
    return jax.nn.log_softmax(z)[jnp.arange(12), targets]

  def differences(f, step=1e-6):
    result = np.zeros_like(logits)
    for i in np.ndindex(*logits.shape):
      bump = np.zeros_like(logits)
      bump[i] = step
      result[i] = (f(logits + bump) - f(logits - bump)) / (2 * step)
    return result

  on_policy = jax.grad(lambda z: loss(logprob(z), old, weight))(logits)
  np.testing.assert_allclose(on_policy, differences(lambda z: -jnp.sum(weight * logprob(z))), atol=1e-8)
  clipped = jax.grad(lambda z: loss(logprob(z), old, weight, clip_low=0.2, clip_high=0.28))(logits)
  np.testing.assert_allclose(
    clipped, differences(lambda z: loss(logprob(z), old, weight, clip_low=0.2, clip_high=0.28)), atol=1e-7
  )
  assert np.abs(on_policy - clipped).max() > 1e-3


@pytest.mark.parametrize("options", [{}, {"clip_low": 0.2, "clip_high": 0.28}, {"truncate": 2.0}])
def test_a_slot_without_weight_is_silent_whatever_it_holds(options):
  logprob = jnp.array([jnp.nan, -jnp.inf, 0.0, -1.0])
  old = jnp.array([0.0, 0.0, -jnp.inf, -1.0])
  weight = jnp.array([0.0, 0.0, 0.0, 2.0])
  value, gradient = jax.value_and_grad(loss)(logprob, old, weight, **options)
  assert value == -2.0
  np.testing.assert_array_equal(gradient, [0.0, 0.0, 0.0, -2.0])


def test_an_overflowing_ratio_leaves_the_clipped_gradient_finite():
  gradient = jax.grad(loss)(jnp.array([-1.0]), jnp.array([-1000.0]), jnp.array([1.0]), clip_low=0.2, clip_high=0.28)
  np.testing.assert_array_equal(gradient, [0.0])


def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(x64):
  logprob, old, weight = random_slots(4, 60)
  whole = jax.grad(loss)(jnp.array(logprob), old, weight, clip_low=0.2, clip_high=0.28)
  for size in (1, 7, 60):
    cuts = [slice(i, i + size) for i in range(0, 60, size)]
    parts = [jax.grad(loss)(jnp.array(logprob[c]), old[c], weight[c], clip_low=0.2, clip_high=0.28) for c in cuts]
    np.testing.assert_allclose(jnp.concatenate(parts), whole, rtol=1e-12)


def test_clipping_and_truncation_together_are_refused():
  one = jnp.ones(1)
  with pytest.raises(ValueError, match=r"clip_low=0.2.*truncate=2.0"):
    surrogate(one, one, one, clip_low=0.2, truncate=2.0)

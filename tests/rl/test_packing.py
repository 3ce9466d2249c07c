"""Packed rows against the rows they stand for: what each slot sees, what it predicts, and the gradient of all of it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_jax.rl import packing
from qwenlong_jax.types import Prompts, Rollout

PAD = 99


@st.composite
def rollouts(draw):
  p, g, s, r = (draw(st.integers(1, n)) for n in (4, 3, 6, 5))
  random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  length, answer = random.integers(1, s + 1, p), random.integers(draw(st.sampled_from([0, 1])), r + 1, (p, g))
  inside = np.arange(r) < answer[..., None]
  return Rollout(
    prompts=Prompts(np.where(np.arange(s) < length[:, None], random.integers(0, 50, (p, s)), PAD), length),
    tokens=np.where(inside, random.integers(0, 50, (p, g, r)), PAD),
    length=answer,
    logprob=np.where(inside, random.normal(-3, 1, (p, g, r)), 0).astype(np.float32),
    entropy=np.zeros((p, g, r), np.float32),
    stopped=np.ones((p, g), bool),
    prefill_tokens=np.int32(p * s),
    decode_steps=np.int32(r),
  )


@given(st.integers(1, 4000), st.integers(1, 9), st.data())
def test_rows_take_the_least_of_few_sizes_that_holds_them(most, shapes, data):
  used = data.draw(st.integers(0, most))
  slots = packing.row_slots(used, most, shapes)
  sizes = sorted({-(-most * n // shapes) for n in range(1, shapes + 1)})
  assert slots == min(size for size in sizes if size >= used)


@given(rollouts(), st.integers(0, 3))
def test_shorter_rows_hold_the_same(rollout, more):
  whole = packing.shared_prefix(rollout, PAD)
  used = int((whole.segment >= 0).sum(1).max())
  short = packing.shared_prefix(rollout, PAD, used + more)
  for name, values in ((name, x) for name, x in vars(short).items() if x is not None):
    both = min(values.shape[1], whole.tokens.shape[1])
    np.testing.assert_array_equal(values[:, :both], getattr(whole, name)[:, :both])
  if used:
    with pytest.raises(ValueError, match=rf"has {used} tokens and slots={used - 1}; give it `row_slots`"):
      packing.shared_prefix(rollout, PAD, used - 1)


@given(rollouts())
def test_a_slot_is_routed_as_its_token_was_in_the_sampler(rollout):
  """Experts that tell which token they were chosen for: of a prompt, or of a response, by its place."""
  (p, g, r), s = rollout.tokens.shape, rollout.prompts.tokens.shape[1]
  prompt_experts = np.broadcast_to(np.arange(s)[:, None, None], (p, s, 2, 3))
  experts = np.broadcast_to((1000 + np.arange(g)[:, None] * 100 + np.arange(r))[..., None, None], (p, g, r, 2, 3))
  recorded = replace(rollout, prompt_experts=prompt_experts, experts=experts)
  batch = packing.shared_prefix(recorded, PAD)
  assert batch.experts.shape == (*batch.tokens.shape, 2, 3)
  for row, slot in zip(*np.nonzero(batch.segment >= 0)):
    position, branch = batch.position[row, slot], batch.segment[row, slot] - 1
    t = position - rollout.prompts.length[row]  # of the response's token that is here
    wanted = position if branch < 0 or t < 0 else 1000 + branch * 100 + t
    assert (batch.experts[row, slot] == wanted).all()


def seen(batch, row, slot):
  """The tokens that a slot sees, itself included, in the order of their positions."""
  segment, position = batch.segment[row], batch.position[row]
  mask = (segment >= 0) & ((segment == segment[slot]) | (segment == 0)) & (position <= position[slot])
  at = np.nonzero(mask)[0]
  at = at[np.argsort(position[at], kind="stable")]
  np.testing.assert_array_equal(position[at], np.arange(len(at)))  # no position twice, none missing
  return batch.tokens[row, at].tolist()


def in_order(batch):
  """No slot sees a later one: what flash_attention asks of its rows."""
  slot = np.arange(batch.tokens.shape[1])
  one, other = batch.segment[:, :, None], batch.segment[:, None, :]
  seen = (one >= 0) & ((other == one) | (other == 0)) & (batch.position[:, None, :] <= batch.position[:, :, None])
  return not (seen & (slot[:, None] < slot)).any()


@given(rollouts())
def test_every_response_token_is_predicted_once_from_all_that_came_before_it(rollout):
  batch = packing.shared_prefix(rollout, PAD)
  p, g, _ = rollout.tokens.shape
  assert batch.tokens.shape == (p, rollout.prompts.tokens.shape[1] - 1 + g * rollout.tokens.shape[2])
  found = {}
  for row, slot in zip(*np.nonzero(batch.sample >= 0)):
    sample = batch.sample[row, slot]
    assert sample // g == row
    prompt = rollout.prompts.tokens[row, : rollout.prompts.length[row]].tolist()
    response = rollout.tokens[row, sample % g, : rollout.length[row, sample % g]].tolist()
    t = batch.position[row, slot] - len(prompt) + 1
    assert seen(batch, row, slot) == prompt + response[:t]
    assert batch.target[row, slot] == response[t]
    assert batch.old_logprob[row, slot] == rollout.logprob[row, sample % g, t]
    found[sample, t] = found.get((sample, t), 0) + 1
  wanted = {(i, t) for i, length in enumerate(rollout.length.reshape(-1)) for t in range(length)}
  assert set(found) == wanted and set(found.values()) <= {1}


@given(rollouts())
def test_a_prompt_is_held_once_and_empty_slots_hold_nothing(rollout):
  batch = packing.shared_prefix(rollout, PAD)
  for row, length in enumerate(rollout.prompts.length):
    shared = batch.segment[row] == 0
    np.testing.assert_array_equal(batch.tokens[row, shared], rollout.prompts.tokens[row, : length - 1])
    assert (batch.sample[row, shared] == -1).all()
    assert shared.sum() + rollout.length[row].sum() == (batch.segment[row] >= 0).sum()
  assert in_order(batch)
  empty = batch.segment == -1
  assert (batch.tokens[empty] == PAD).all() and (batch.sample[empty] == -1).all()
  for values in (batch.weight, batch.old_logprob, batch.target):
    assert (values[batch.sample < 0] == 0).all()


@given(rollouts(), st.integers(0, 99))
def test_weights_and_statistics_find_their_tokens_again(rollout, seed):
  mask, batch = packing.response_mask(rollout), packing.shared_prefix(rollout, PAD)
  weight = np.random.default_rng(seed).normal(size=mask.shape).astype(np.float32)
  weighted = packing.with_weights(batch, weight, mask)
  np.testing.assert_array_equal(packing.unpack(weighted, weighted.weight, mask), np.where(mask, weight, 0))
  np.testing.assert_array_equal(packing.unpack(batch, batch.target, mask), np.where(mask, rollout.tokens, 0))
  np.testing.assert_array_equal(packing.unpack(batch, batch.old_logprob, mask), rollout.logprob)
  assert (weighted.weight[batch.sample < 0] == 0).all()
  assert not batch.weight.any()  # the batch given is not changed
  for name in ("tokens", "segment", "position", "target", "sample", "old_logprob"):
    np.testing.assert_array_equal(getattr(weighted, name), getattr(batch, name))


@st.composite
def texts(draw):
  """(tokens, length of the prompt) pairs and rows that may or may not hold them all."""
  lengths = draw(st.lists(st.tuples(st.integers(2, 9), st.integers(1, 8)), max_size=10))
  random = np.random.default_rng(draw(st.integers(0, 99)))
  pairs = [(random.integers(0, 50, n).astype(np.int32), min(prompt, n - 1)) for n, prompt in lengths]
  return pairs, draw(st.integers(1, 4)), draw(st.integers(8, 14))


@given(texts())
def test_documents_are_seen_whole_and_alone_and_predict_what_follows_the_prompt(drawn):
  pairs, rows, slots = drawn
  batch, taken = packing.documents(pairs, rows, slots, PAD)
  free = [slots] * rows  # first fit, until one does not fit anywhere
  for count, (tokens, _) in enumerate(pairs):
    row = next((i for i in range(rows) if free[i] >= len(tokens) - 1), None)
    if row is None:
      assert taken == count
      break
    free[row] -= len(tokens) - 1
  else:
    assert taken == len(pairs)
  assert [(batch.segment[i] == -1).sum() for i in range(rows)] == free

  for index, (tokens, prompt) in enumerate(pairs[:taken]):
    where = list(zip(*np.nonzero(batch.sample == index)))
    assert len(where) == len(tokens) - prompt
    for t, (row, slot) in enumerate(where, prompt):
      assert seen(batch, row, slot) == tokens[:t].tolist()
      assert batch.target[row, slot] == tokens[t]
  targets = batch.sample >= 0
  if taken:
    np.testing.assert_allclose(batch.weight[targets], 1 / targets.sum(), rtol=1e-6)
  assert not batch.weight[~targets].any() and not (batch.segment == 0).any()


def test_a_document_longer_than_a_row_is_refused():
  with pytest.raises(ValueError, match=r"a document of 10 tokens does not fit a row of 8; raise warmstart.row_slots"):
    packing.documents([(np.arange(10), 1)], 2, 8, PAD)


@pytest.mark.parametrize("kind", ["dense", "moe", "moe, experts grouped"])
def test_the_gradient_is_that_of_repeating_the_prompt(kind, learner, params, rollout, gradient, close):
  """Sum over tokens of weight * d ln p, with each sample in a causal row of its own and all of its logits."""
  p, g, s, r = 4, 3, 7, 5
  sampled = rollout(p, g, s, r)
  mask = packing.response_mask(sampled)
  weight = np.random.default_rng(1).normal(size=mask.shape).astype(np.float32)
  batch = packing.with_weights(packing.shared_prefix(sampled, 0), weight, mask)

  rows, targets, weights = np.zeros((3, p * g, s + r - 1))
  for i, (prompt, branch) in enumerate(np.ndindex(p, g)):
    n, m = sampled.prompts.length[prompt], sampled.length[prompt, branch]
    row = np.concatenate([sampled.prompts.tokens[prompt, :n], sampled.tokens[prompt, branch, :m]])
    rows[i, : n + m - 1], targets[i, : n + m - 1] = row[:-1], row[1:]
    weights[i, n - 1 : n - 1 + m] = weight[prompt, branch, :m]

  one = learner(kind)

  @jax.jit
  @jax.grad
  def repeated(params):
    model = nnx.merge(one.graph, params)
    tokens = jnp.asarray(rows, jnp.int32)
    hidden = model(tokens, jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape), jnp.ones_like(tokens))
    logprobs = jax.nn.log_softmax(model.logits(hidden) / one.temperature)
    chosen = jnp.take_along_axis(logprobs, jnp.asarray(targets, jnp.int32)[..., None], -1)[..., 0]
    return -(weights * chosen).sum()

  close(gradient(one, params(kind), batch), repeated(params(kind)), 1e-5)

"""The learner against a Qwen3 written in float64 numpy, and against itself on the same batch cut in other ways."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qwenlong_jax.kernels.flash_attention import xla as attention_blocks
from qwenlong_jax.kernels.token_stats import xla as token_chunks
from qwenlong_jax.rl import packing
from qwenlong_jax.rl.learner import Ratio
from qwenlong_jax.types import TrainBatch

P, G, S, R = 8, 2, 6, 4
ROWS, SLOTS = P, S - 1 + G * R
KIND = "moe"


def log_softmax(z):
  z = z - z.max(-1, keepdims=True)
  return z - np.log(np.exp(z).sum(-1, keepdims=True))


def silu(x):
  return x / (1 + np.exp(-x))


def qwen3(config, params, tokens):
  """Logits [B T V] of causal rows; `params` a nested dict of float64 arrays, its layers one stack of experts."""
  norm = lambda x, w: x / np.sqrt((x * x).mean(-1, keepdims=True) + config.rms_norm_eps) * w  # noqa: E731
  (rows, slots), size = tokens.shape, config.head_dim
  angle = np.arange(slots)[:, None] * config.rope_theta ** -(np.arange(0, size, 2) / size)
  turn = np.exp(1j * angle)[None, :, None]
  half = size // 2

  def rotate(x):
    z = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([z.real, z.imag], -1)

  x = params["embedding"][tokens]
  for layer in range(config.num_hidden_layers):
    block = jax.tree.map(lambda w, layer=layer: w[layer], params["runs"][0])
    a, m = block["attention"], block["mlp"]
    h = norm(x, block["attention_norm"])
    q, k, v = ((h @ a[name]).reshape(rows, slots, -1, size) for name in "qkv")
    q, k = rotate(norm(q, a["q_norm"])), rotate(norm(k, a["k_norm"]))
    k, v = (np.repeat(y, config.num_attention_heads // config.num_key_value_heads, 2) for y in (k, v))
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(size)
    scores = np.where(np.tri(slots, dtype=bool), scores, -np.inf)
    x = x + np.einsum("bhqk,bkhd->bqhd", np.exp(log_softmax(scores)), v).reshape(rows, slots, -1) @ a["o"]
    h = norm(x, block["mlp_norm"])
    router = np.exp(log_softmax(h @ m["router"]))
    least = np.sort(router, -1)[..., -config.num_experts_per_tok, None]
    router = np.where(router >= least, router, 0)
    router /= router.sum(-1, keepdims=True)
    for e in range(config.num_experts):
      x = x + router[..., e, None] * ((silu(h @ m["gate"][e]) * (h @ m["up"][e])) @ m["down"][e])
  return norm(x, params["norm"]) @ params["embedding"].T


def alone(batch):
  """(tokens [B T], (row, slot) of each predicting slot, (sample, index) of the same): samples in rows of their own."""
  where, tokens = np.nonzero(batch.sample >= 0), []
  samples = sorted(set(batch.sample[where].tolist()))
  for sample in samples:
    row, slots = np.nonzero(batch.sample == sample)
    mask = (batch.segment[row[0]] == batch.segment[row[0], slots[0]]) | (batch.segment[row[0]] == 0)
    tokens.append(batch.tokens[row[0], mask][np.argsort(batch.position[row[0], mask])])
  padded = np.zeros((len(tokens), max(map(len, tokens))), int)
  for row, these in zip(padded, tokens):
    row[: len(these)] = these
  return padded, where, (np.searchsorted(samples, batch.sample[where]), batch.position[where])


def log_softmaxes(config, params, batch, temperature):
  """[n V] of the predicting slots, and where these are in the batch."""
  tokens, where, at = alone(batch)
  return log_softmax(qwen3(config, params, tokens)[at] / temperature), where


def float64(params):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(params))


@pytest.fixture(scope="module")
def batch(rollout):
  sampled = rollout(P, G, S, R)
  mask = packing.response_mask(sampled)
  weight = np.random.default_rng(1).normal(size=mask.shape).astype(np.float32)
  return packing.with_weights(packing.shared_prefix(sampled, 0), weight, mask)


@pytest.fixture(scope="module")
def whole(learner, params, batch, gradient):
  """The gradient of the batch, on one device and at once."""
  return gradient(learner(KIND), params(KIND), batch)


def check_differences(objective, params, gradient, tolerance=2e-4):
  """-d objective along a random direction of each parameter, and of all, by central differences in float64."""
  random = np.random.default_rng(0)
  leaves, tree = jax.tree.flatten(float64(params))
  slopes = jax.tree.leaves(float64(gradient))
  directions = [random.normal(size=leaf.shape) for leaf in leaves]
  for chosen in [*range(len(leaves)), None]:
    moved = [d if chosen in (i, None) else np.zeros_like(d) for i, d in enumerate(directions)]
    up, down = (objective(tree.unflatten([w + e * d for w, d in zip(leaves, moved)])) for e in (1e-5, -1e-5))
    wanted = -(up - down) / 2e-5
    got = sum((d * g).sum() for d, g in zip(moved, slopes))
    scale = np.sqrt(sum((g * g).sum() for d, g in zip(moved, slopes) if d.any()))
    assert abs(got - wanted) < tolerance * scale, (chosen, got, wanted)


def test_the_gradient_is_of_the_weighted_log_likelihood(tiny_config, params, batch, whole):
  """On-policy (eq. 4): every ratio is 1 and its slope that of the log-probability at the sampling temperature."""

  def objective(weights):
    logprobs, where = log_softmaxes(tiny_config(KIND), weights, batch, 0.7)
    return (batch.weight[where] * logprobs[np.arange(len(logprobs)), batch.target[where]]).sum()

  check_differences(objective, params(KIND), whole)


def test_off_policy_the_loss_and_its_gradient_are_of_the_clipped_ratios(tiny_config, learner, params, batch):
  one, config = learner(KIND, ratio=Ratio(clip_low=0.2, clip_high=0.3)), tiny_config(KIND)

  def chosen(weights):
    logprobs, where = log_softmaxes(config, weights, batch, 0.7)
    return logprobs[np.arange(len(logprobs)), batch.target[where]], where

  now, where = chosen(float64(params(KIND)))
  old = batch.old_logprob.copy()
  old[where] = now + np.random.default_rng(2).normal(0, 0.4, len(now))
  moved = dataclasses.replace(batch, old_logprob=old)

  def objective(weights):
    logprob, _ = chosen(weights)
    ratio, weight = np.exp(logprob - old[where]), batch.weight[where]
    return np.minimum(weight * ratio, weight * np.clip(ratio, 0.8, 1.3)).sum()

  state, metrics = one.update(one.state_of(jax.tree.map(jnp.copy, params(KIND))), moved)
  np.testing.assert_allclose(metrics.loss, -objective(float64(params(KIND))), rtol=1e-4)
  check_differences(objective, params(KIND), state.optimizer[0])


def test_documents_give_the_gradient_of_the_mean_negative_log_likelihood(tiny_config, learner, params, gradient):
  random = np.random.default_rng(3)
  pairs = [(random.integers(1, 37, n), prompt) for n, prompt in ((9, 4), (5, 1), (13, 6), (3, 2), (7, 3), (14, 13))]
  documents, taken = packing.documents(pairs, ROWS, SLOTS, 0)
  assert taken == len(pairs)

  def objective(weights):
    total = [
      log_softmax(qwen3(tiny_config(KIND), weights, tokens[None, :-1])[0] / 0.7)[t - 1, tokens[t]]
      for tokens, prompt in pairs
      for t in range(prompt, len(tokens))
    ]
    return np.mean(total)

  check_differences(objective, params(KIND), gradient(learner(KIND), params(KIND), documents))


@pytest.mark.parametrize(
  "devices, ring, micro_rows, remat", [(2, 1, 1, False), (8, 1, None, True), (2, 4, 2, False), (1, 8, None, True)]
)
def test_the_gradient_does_not_depend_on_micro_batches_or_devices(
  learner, params, batch, gradient, close, whole, devices, ring, micro_rows, remat, monkeypatch
):
  """Nor on the ring that holds the slots of a row, nor on what is kept for the backward pass, nor on the kernels' own
  cuts, of queries and of tokens, within each device."""
  monkeypatch.setattr(attention_blocks, "BLOCKS", {"default": 4})
  monkeypatch.setattr(attention_blocks, "SHORT", 0)
  monkeypatch.setattr(token_chunks, "CHUNK_BYTES", 5 * 37 * 4)
  one = learner(KIND, devices, micro_rows, ring=ring, remat=remat)
  close(gradient(one, params(KIND), batch), whole, 1e-5)


def test_nor_on_the_order_of_the_rows(learner, params, batch, gradient, close, whole):
  order = np.random.default_rng(4).permutation(ROWS)
  shuffled = TrainBatch(**{name: value[order] for name, value in vars(batch).items() if value is not None})
  close(gradient(learner(KIND), params(KIND), shuffled), whole, 1e-5)


@pytest.mark.parametrize("devices, ring, micro_rows", [(1, 1, None), (2, 1, 1), (2, 4, 2)])
def test_log_probabilities_are_those_of_each_sample_alone_before_the_update(
  tiny_config, learner, params, batch, devices, ring, micro_rows
):
  one = learner(KIND, devices, micro_rows, ring=ring)
  logprob = np.asarray(one.update(one.state_of(params(KIND)), batch)[1].logprob)
  wanted, where = log_softmaxes(tiny_config(KIND), float64(params(KIND)), batch, 0.7)
  np.testing.assert_allclose(logprob[where], wanted[np.arange(len(wanted)), batch.target[where]], atol=1e-5, rtol=0)
  assert logprob.dtype == np.float32
  np.testing.assert_array_equal(logprob[batch.sample < 0], 0.0)


@pytest.mark.parametrize("devices, micro_rows, computed", [(1, 1, 3), (1, 2, 4), (1, None, 8), (2, 1, 4), (8, None, 8)])
def test_rows_without_weight_are_not_computed_and_change_nothing(
  learner, params, batch, gradient, close, devices, micro_rows, computed
):
  """Those with weight come first, on each device; the last micro-batch is the one that has some on any device."""
  heavy = np.isin(np.arange(ROWS), [1, 3, 6])
  sparse = dataclasses.replace(batch, weight=np.where(heavy[:, None], batch.weight, 0).astype(np.float32))
  one = learner(KIND, devices, micro_rows)
  logprob = np.asarray(one.update(one.state_of(params(KIND)), sparse)[1].logprob)
  done = (logprob != 0).any(axis=1)
  assert done[heavy].all() and done.sum() == computed
  everything = np.asarray(learner(KIND).update(learner(KIND).state_of(params(KIND)), batch)[1].logprob)
  np.testing.assert_allclose(logprob[done], everything[done], atol=1e-5, rtol=0)

  alone = TrainBatch(**{name: value[heavy] for name, value in vars(sparse).items() if value is not None})
  close(gradient(one, params(KIND), sparse), gradient(learner(KIND), params(KIND), alone), 1e-5)


def test_the_metrics_say_what_the_update_did(tiny_config, learner, params, batch, whole):
  one = learner(KIND)
  silent = batch.weight.copy()
  silent[0] = 0.0
  _, metrics = one.update(one.state_of(params(KIND)), batch)
  logprobs, where = log_softmaxes(tiny_config(KIND), float64(params(KIND)), batch, 0.7)
  chosen = logprobs[np.arange(len(logprobs)), batch.target[where]]
  np.testing.assert_allclose(metrics.loss, -batch.weight.sum(dtype=float), rtol=1e-5)
  np.testing.assert_allclose(metrics.nll, -chosen.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics.accuracy, (chosen > np.log(0.5)).mean(), rtol=1e-6)
  norm = np.sqrt(sum((g.astype(float) ** 2).sum() for g in jax.tree.leaves(whole)))
  np.testing.assert_allclose(metrics.gradient_norm, norm, rtol=1e-5)
  assert metrics.learned_tokens == (batch.weight != 0).sum() and metrics.finite and metrics.applied
  _, metrics = one.update(one.state_of(params(KIND)), dataclasses.replace(batch, weight=silent))
  assert metrics.learned_tokens == (silent != 0).sum() < (batch.weight != 0).sum()


def stepped(learner, params, batch):
  """A state whose moments are not zero, and a copy of it in numpy."""
  state, metrics = learner.update(learner.state_of(params), batch)
  assert metrics.applied and state.step == 1
  # A copy: device_get may return a view of a buffer that the next update is given.
  return state, jax.tree.map(np.array, state)


@pytest.mark.parametrize("weights", ["zero", "nan", "infinite"])
def test_nothing_to_learn_or_a_broken_gradient_moves_nothing_but_the_step(learner, params, batch, weights):
  """Bit for bit: moments, their count and weight decay too. The step after it is as if it had never been."""
  one = learner(KIND)
  state, before = stepped(one, params(KIND), batch)
  weight = np.zeros_like(batch.weight)
  weight[-1, -1] = {"zero": -0.0, "nan": np.nan, "infinite": np.inf}[weights]
  weight[np.nonzero(batch.sample >= 0)] += weight[-1, -1]
  state, metrics = one.update(state, dataclasses.replace(batch, weight=weight))
  assert not metrics.applied and bool(metrics.finite) == (weights == "zero")
  assert state.step == 2
  for name in ("params", "optimizer"):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.array, getattr(state, name)), getattr(before, name))
  if weights == "zero":
    assert metrics.loss == 0 and metrics.gradient_norm == 0 and metrics.learned_tokens == 0


def test_parameters_that_are_not_finite_are_reported(learner, params, batch):
  one = learner(KIND)
  broken = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), params(KIND))
  _, metrics = one.update(one.state_of(broken), batch)
  assert not metrics.finite and not metrics.applied


def test_weight_decay_and_moments_move_when_there_is_something_to_learn(learner, params, batch):
  state, before = stepped(learner(KIND), params(KIND), batch)
  state, metrics = learner(KIND).update(state, batch)
  assert metrics.applied and state.step == 2
  for name in ("params", "optimizer"):
    changed = jax.tree.map(lambda a, b: (np.asarray(a) != b).any(), getattr(state, name), getattr(before, name))
    assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize("devices, ring, micro_rows", [(1, 1, None), (8, 1, None), (2, 4, 2)])
def test_a_step_reuses_the_state_it_is_given_and_compiles_once(learner, params, batch, devices, ring, micro_rows):
  one = learner(KIND, devices, micro_rows, ring=ring)
  state = one.state_of(params(KIND))
  compiled = []
  listener = lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None  # noqa: E731
  try:
    for step in range(3):
      given = jax.tree.leaves((state.params, state.optimizer))
      state, _ = one.update(state, batch)
      assert all(x.is_deleted() for x in given)
      if step == 0:
        jax.monitoring.register_event_duration_secs_listener(listener)
  finally:
    jax.monitoring.unregister_event_duration_listener(listener)
  assert not compiled


@pytest.mark.parametrize("devices, ring, micro_rows", [(8, 1, None), (2, 4, 2)])
def test_every_device_keeps_its_share_of_the_state(learner, params, batch, devices, ring, micro_rows):
  one = learner(KIND, devices, micro_rows, ring=ring)
  state, _ = one.update(one.state_of(params(KIND)), batch)
  wanted = jax.tree.leaves(one.abstract_state())
  for array, abstract in zip(jax.tree.leaves(state), wanted, strict=True):
    assert array.sharding.is_equivalent_to(abstract.sharding, array.ndim), (array.shape, array.sharding)


def test_a_state_created_from_a_key_lies_on_its_shards(tiny_config, learner):
  one = learner(KIND, 8)
  state = one.create_state(jax.random.key(3))
  for array, abstract in zip(jax.tree.leaves(state), jax.tree.leaves(one.abstract_state()), strict=True):
    assert (array.shape, array.dtype, array.sharding) == (abstract.shape, abstract.dtype, abstract.sharding)
  embedding = np.asarray(state.params["embedding"][...])
  np.testing.assert_allclose(embedding.std(), tiny_config(KIND).initializer_range, rtol=0.1)
  assert (np.asarray(state.params["norm"][...]) == 1).all() and state.step == 0


@pytest.mark.parametrize("devices, micro_rows", [(8, 2), (3, None), (1, 3)])
def test_rows_that_do_not_divide_are_refused(learner, params, batch, devices, micro_rows):
  one = learner(KIND, devices, micro_rows)
  with pytest.raises(ValueError, match=rf"8 rows do not divide by mesh.data={devices} times micro_rows="):
    one.update(one.abstract_state(), batch)


def test_what_waits_in_the_hosts_memory_is_what_was_put_there(learner, params, batch):
  """Attention's results between the passes, the optimizer's state between the steps: the same numbers to the bit."""
  states = []
  for offload in (False, True):
    one = learner("dense", devices=2, remat=True, offload=offload)
    state = one.state_of(jax.tree.map(jnp.copy, params("dense")))
    for _ in range(2):
      state, metrics = one.update(state, batch)
    assert metrics.applied
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(state.optimizer)}
    assert kinds == ({"pinned_host"} if offload else {"device"})
    assert {x.sharding.memory_kind for x in jax.tree.leaves(state.params)} == {"device"}
    states.append(jax.device_get(state))
  jax.tree.map(np.testing.assert_array_equal, *states)

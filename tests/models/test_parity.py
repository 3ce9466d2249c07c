"""Our Qwen3 against transformers' Qwen3ForCausalLM and Qwen3MoeForCausalLM with the same random weights, on CPU."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from qwenlong_jax.models import qwen3, safetensors
from qwenlong_jax.models.presets import Yarn

LOGITS = 1e-4
GRADIENTS = 1e-3
UNTIED = {"tie_word_embeddings": False}
CONFIGS = {
  "dense": ("dense", {}),
  "dense, a head per query": ("dense", {"num_key_value_heads": 4, "head_dim": 8, **UNTIED}),
  "dense, one head for all": ("dense", {"num_key_value_heads": 1, "rope_theta": 1e7, "rms_norm_eps": 1e-4}),
  "moe": ("moe", UNTIED),
  "moe, weights not renormalised": ("moe", {"norm_topk_prob": False, "num_experts_per_tok": 3}),
  "moe, experts grouped": ("moe", {"num_experts": 12, "num_experts_per_tok": 3}),
  "moe, every second layer": ("moe", {"num_hidden_layers": 4, "decoder_sparse_step": 2}),
  "moe, a dense layer between": ("moe", {"num_hidden_layers": 3, "mlp_only_layers": (1,), **UNTIED}),
  "yarn": ("dense", {"rope_scaling": Yarn(4.0, 16)}),
  "yarn, its bounds": ("dense", {"rope_scaling": Yarn(8.0, 32, beta_fast=4.0, beta_slow=0.5, truncate=False)}),
  "yarn, attention factor": ("moe", {"rope_scaling": Yarn(4.0, 16, attention_factor=1.3)}),
  "yarn, mscale": ("dense", {"rope_scaling": Yarn(40.0, 16, mscale=0.7, mscale_all_dim=1.2)}),
}
FEW = ["dense", "moe", "moe, a dense layer between", "yarn, attention factor"]
TOKENS = np.random.default_rng(0).integers(0, 97, (2, 24))


@pytest.fixture(scope="module")
def pairs(tiny, hugging_face, tmp_path_factory):
  """name -> (configuration, transformers' model, our parameters) with equal weights, each made once."""

  @functools.cache
  def make(name):
    kind, changes = CONFIGS[name]
    config, folder = tiny(kind, **changes), tmp_path_factory.mktemp("pair")
    model = hugging_face(config)
    model.save_pretrained(folder)
    return config, model, safetensors.load(folder, config)

  return make


@pytest.fixture
def pair(request, pairs):
  return pairs(request.param)


def their_logits(model, tokens, **inputs):
  with torch.no_grad():
    return model(torch.tensor(np.asarray(tokens)), **inputs).logits.numpy()


@pytest.mark.parametrize("pair", CONFIGS, indirect=True)
def test_logits_are_those_of_transformers(pair, our_logits):
  config, model, params = pair
  np.testing.assert_allclose(our_logits(config, params, TOKENS), their_logits(model, TOKENS), atol=LOGITS, rtol=0)


@pytest.mark.parametrize("pair", FEW, indirect=True)
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(pair, our_logits, side):
  config, model, params = pair
  real = np.array([24, 15])
  slots = np.arange(24)
  shown = slots < real[:, None] if side == "right" else slots >= 24 - real[:, None]
  positions = np.maximum(np.cumsum(shown, 1) - 1, 0)
  ours = our_logits(config, params, TOKENS, positions, np.where(shown, 0, -1))
  theirs = their_logits(
    model, TOKENS, attention_mask=torch.tensor(shown.astype(int)), position_ids=torch.tensor(positions)
  )
  np.testing.assert_allclose(ours[shown], theirs[shown], atol=LOGITS, rtol=0)
  alone = their_logits(model, TOKENS[1:, :15] if side == "right" else TOKENS[1:, 9:])
  np.testing.assert_allclose(ours[1][shown[1]], alone[0], atol=LOGITS, rtol=0)


@pytest.mark.parametrize("pair", FEW, indirect=True)
def test_packed_documents_are_as_if_each_were_alone(pair, our_logits):
  config, model, params = pair
  lengths = [7, 1, 12]
  segments = np.repeat([1, 2, 3, -1], [*lengths, 4])
  positions = np.concatenate([np.arange(n) for n in [*lengths, 4]])
  packed = our_logits(config, params, TOKENS[:1], positions[None], segments[None])[0]
  for document, start, length in zip((1, 2, 3), np.cumsum([0, *lengths]), lengths, strict=False):
    alone = their_logits(model, TOKENS[:1, start : start + length])[0]
    np.testing.assert_allclose(packed[segments == document], alone, atol=LOGITS, rtol=0)


@pytest.mark.parametrize("pair", FEW, indirect=True)
def test_branches_over_a_shared_prefix_are_as_if_each_followed_it_alone(pair, our_logits):
  config, model, params = pair
  prefix, first, second = TOKENS[0, :10], TOKENS[0, 10:18], TOKENS[0, 18:]
  segments = np.repeat([0, 1, 2], [10, 8, 6])
  positions = np.concatenate([np.arange(10), 10 + np.arange(8), 10 + np.arange(6)])
  packed = our_logits(config, params, TOKENS[:1], positions[None], segments[None])[0]
  for branch, tokens in ((1, first), (2, second)):
    alone = their_logits(model, np.concatenate([prefix, tokens])[None])[0]
    np.testing.assert_allclose(packed[segments == branch], alone[10:], atol=LOGITS, rtol=0)
    np.testing.assert_allclose(packed[segments == 0], alone[:10], atol=LOGITS, rtol=0)


@pytest.mark.parametrize(
  "pair, remat",
  [("dense", True), ("moe", False), ("moe, experts grouped", True), ("moe, a dense layer between", False)],
  indirect=["pair"],
)
def test_gradients_are_those_of_transformers(pair, merged, remat, tmp_path):
  config, model, params = pair
  inputs, targets = TOKENS[:, :-1], TOKENS[:, 1:]

  @jax.jit
  @jax.grad
  def ours(params):
    net = merged(config, params)
    net.remat = remat
    tokens = jnp.asarray(inputs)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    logprobs = jax.nn.log_softmax(net.logits(net(tokens, positions, jnp.zeros_like(tokens))))
    return -jnp.take_along_axis(logprobs, jnp.asarray(targets)[..., None], -1).mean()

  model.zero_grad()
  logits = model(torch.tensor(inputs)).logits
  torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten()).backward()
  with torch.no_grad():
    for weight in model.parameters():
      weight.data, weight.grad = weight.grad, weight.data
    model.save_pretrained(tmp_path)
    for weight in model.parameters():
      weight.data, weight.grad = weight.grad, weight.data
  theirs = safetensors.load(tmp_path, config)
  for (path, want), got in zip(jax.tree_util.tree_leaves_with_path(theirs), jax.tree.leaves(ours(params)), strict=True):
    error = np.linalg.norm(np.asarray(got - want)) / np.linalg.norm(np.asarray(want))
    assert error < GRADIENTS, (jax.tree_util.keystr(path), error)


def gradient(config, params, dtype, **options):
  """Of a plain loss, in `dtype`."""
  abstract = nnx.eval_shape(lambda: qwen3.Qwen3(config, rngs=nnx.Rngs(0), dtype=dtype, **options))
  tokens = jnp.asarray(TOKENS)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

  @jax.jit
  @jax.grad
  def of(params):
    hidden = nnx.merge(nnx.split(abstract)[0], params)(tokens, positions, jnp.zeros_like(tokens))
    return (hidden.astype(jnp.float32) ** 2 * jnp.arange(hidden.shape[-1])).mean()

  return of(params)


@pytest.mark.parametrize("together", [1, 2, 3])
def test_recomputed_layers_have_the_same_gradients_together_and_alone(tiny, together):
  config = tiny("moe", num_hidden_layers=6)  # so many are a loop
  params = nnx.state(qwen3.Qwen3(config, rngs=nnx.Rngs(0)))
  want, got = (gradient(config, params, jnp.float32, **o) for o in ({}, {"remat": True, "together": together}))
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * np.abs(y).max())


def test_layers_that_do_not_go_together_are_said(tiny):
  config = tiny("dense", num_hidden_layers=6)
  params = nnx.state(qwen3.Qwen3(config, rngs=nnx.Rngs(0)))
  with pytest.raises(ValueError, match="6 layers of one kind after each other do not divide by together=4"):
    gradient(config, params, jnp.float32, remat=True, together=4)


@pytest.mark.parametrize("layers", [3, 6])
def test_gradients_of_weights_that_are_cast_are_those_of_the_cast_weights(tiny, layers):
  """Stacked in bfloat16, as they were found, and float32 only then."""
  config = tiny("dense", num_hidden_layers=layers)
  params = nnx.state(qwen3.Qwen3(config, rngs=nnx.Rngs(0)))
  low = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
  got, want = (gradient(config, p, jnp.bfloat16, remat=True)["runs"] for p in (params, low))
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert x.dtype == jnp.float32 and y.dtype == jnp.bfloat16
    np.testing.assert_allclose(x, y.astype(jnp.float32), rtol=0.02, atol=0.02 * np.abs(y.astype(jnp.float32)).max())


@pytest.mark.parametrize("pair", [*FEW[1:], "moe, experts grouped"], indirect=True)
def test_decoding_over_caches_gives_the_logits_of_the_full_forward(pair, merged, our_logits):
  """Two prompts of unequal length, two branches each, written slot by slot as a sampler would."""
  config, model, params = pair
  lengths, branches, steps = np.array([9, 5]), 2, 4
  random = np.random.default_rng(1)
  prompts = random.integers(0, 97, (2, 9))
  answers = random.integers(0, 97, (2, branches, steps))
  segments = np.where(np.arange(9) < lengths[:, None], 0, -1)
  positions = np.broadcast_to(np.arange(9), (2, 9))
  layers = (config.num_hidden_layers, 2, branches, config.num_key_value_heads, steps, config.head_dim)

  @jax.jit
  def prefill(params):
    hidden, cache, _ = merged(config, params).prefill(*map(jnp.asarray, (prompts, positions, segments)))
    return merged(config, params).logits(hidden), cache

  @jax.jit
  def step(params, tokens, prefix, suffix, written):
    net = merged(config, params)
    count = jnp.full((2, branches), written)
    positions = jnp.asarray(lengths)[:, None] + count
    hidden, new, _ = net.decode(tokens, positions, prefix, jnp.asarray(lengths), suffix, count)
    return net.logits(hidden), tuple(c.at[..., written, :].set(n) for c, n in zip(suffix, new, strict=True))

  first, prefix = prefill(params)
  suffix = (jnp.zeros(layers), jnp.zeros(layers))
  decoded = []
  for written in range(steps):
    logits, suffix = step(params, jnp.asarray(answers[:, :, written]), prefix, suffix, written)
    decoded.append(np.asarray(logits))
  for p, g in np.ndindex(2, branches):
    row = np.concatenate([prompts[p, : lengths[p]], answers[p, g]])[None]
    whole = their_logits(model, row)[0]
    np.testing.assert_allclose(first[p, : lengths[p]], whole[: lengths[p]], atol=LOGITS, rtol=0)
    np.testing.assert_allclose([d[p, g] for d in decoded], whole[lengths[p] :], atol=LOGITS, rtol=0)
    if p == g == 0:
      np.testing.assert_allclose(our_logits(config, params, row)[0], whole, atol=LOGITS, rtol=0)


def test_equal_layers_share_one_run(tiny):
  assert qwen3.runs_of(tiny("moe", num_hidden_layers=5)) == [("moe", 5)]
  mixed = tiny("moe", num_hidden_layers=5, mlp_only_layers=(2, 3))
  assert qwen3.runs_of(mixed) == [("moe", 2), ("dense", 2), ("moe", 1)]


@pytest.mark.parametrize("pair", ["moe"], indirect=True)
def test_bfloat16_errs_about_as_much_as_rounding_the_weights_does(pair, merged):
  config, model, params = pair
  exact = their_logits(model, TOKENS)
  theirs = their_logits(copy.deepcopy(model).to(torch.bfloat16).float(), TOKENS)

  @jax.jit
  def run(params):
    net = merged(config, params)
    net.dtype = jnp.bfloat16
    tokens = jnp.asarray(TOKENS)
    return net.logits(net(tokens, jnp.broadcast_to(jnp.arange(24), tokens.shape), jnp.zeros_like(tokens)))

  ours = np.asarray(run(params))
  assert np.abs(ours - exact).mean() < 3 * np.abs(theirs - exact).mean() + 0.02 * np.abs(exact).mean()

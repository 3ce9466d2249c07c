"""Every implementation of prefix_decode against a float64 softmax over [prefix, own suffix, self], branch by branch."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as Spec
from oracle import error, interpreted

from qwenlong_jax.kernels.prefix_decode import (
  IMPLEMENTATIONS,
  pallas_tpu,
  prefix_decode,
  prefix_decode_with_lse,
  write_prefix,
  write_suffix,
)

N, P, G, H, K, D, S, R = 3, 2, 3, 4, 2, 8, 11, 5
LAYER = 1
FORWARD = 1e-5
# Slots that a step of the TPU kernel takes: several blocks, the last of them ragged; one.
BLOCKS = {"reference": [None], "xla": [None], "pallas_tpu": [4, 16]}
SHARDED = [(name, devices) for name in IMPLEMENTATIONS for devices in (1, 2, 8)]


@pytest.fixture(scope="module", params=[(name, block) for name in IMPLEMENTATIONS for block in BLOCKS[name]], ids=str)
def run(request):
  """The door with one implementation, giving (out, log-sum-exp)."""
  return compiled(*request.param)


@functools.cache
def compiled(implementation, block):
  return patched(jax.jit(functools.partial(prefix_decode_with_lse, implementation=implementation)), block)


def patched(run, block):
  def call(*args):
    with pytest.MonkeyPatch.context() as patch, interpreted():
      if block:
        patch.setattr(pallas_tpu, "slots_of_a_block", lambda *_: block)
      return jax.block_until_ready(run(*args))

  return call


@functools.cache
def sharded(implementation, devices):
  """The same with the slots cut over devices; prefix_length [P devices], suffix_length [P G devices]."""
  mesh = jax.make_mesh((devices,), ("slots",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))

  def local(q, k, v, prefix, prefix_length, suffix, suffix_length, layer):
    return prefix_decode_with_lse(
      q, k, v, prefix, prefix_length[..., 0], suffix, suffix_length[..., 0], layer,
      axis="slots", implementation=implementation,
    )  # fmt: skip

  cut = lambda at: Spec(*[None] * at, "slots")  # noqa: E731
  specs = (Spec(), Spec(), Spec(), cut(3), cut(1), cut(4), cut(2), Spec())
  # Interpret mode's own program does not say over which axes its arrays vary, nor does the reference's all-gather.
  run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=Spec(), check_vma=implementation == "xla")
  return patched(jax.jit(run), 4)


def random_inputs(seed=0, dtype=jnp.float32, heads=(H, K), slots=(S, R)):
  """q, k, v, prefix, suffix: all slots hold numbers, those past the lengths too."""
  (h, kv), (s, r) = heads, slots
  random = np.random.default_rng(seed)
  make = lambda *shape: jnp.asarray(random.normal(size=shape), dtype)  # noqa: E731
  pair = lambda *shape: (make(*shape), make(*shape))  # noqa: E731
  return make(P, G, h, D), *pair(P, G, kv, D), pair(N, P, kv, s, D), pair(N, P, G, kv, r, D)


def oracle(q, k, v, prefix, in_prefix, suffix, in_suffix, layer):
  """(out, log-sum-exp) over the slots that in_prefix [P S] and in_suffix [P G R] tell."""
  q, k, v, *caches = (np.asarray(x, np.float64) for x in (q, k, v, *(x[layer] for x in (*prefix, *suffix))))
  out, lse = np.zeros_like(q), np.zeros(q.shape[:3])
  for p, g, h in np.ndindex(q.shape[:3]):
    n = h * k.shape[2] // q.shape[2]
    keys, values = (
      np.concatenate([before[p, n, in_prefix[p]], after[p, g, n, in_suffix[p, g]], new[p, g, n][None]])
      for before, after, new in zip(caches[:2], caches[2:], (k, v))
    )
    scores = keys @ q[p, g, h] / np.sqrt(q.shape[3])
    weights = np.exp(scores - scores.max())
    out[p, g, h] = weights @ values / weights.sum()
    lse[p, g, h] = scores.max() + np.log(weights.sum())
  return out, lse


def check(run, inputs, prefix_length, suffix_length, tolerance=FORWARD, layer=LAYER):
  q, k, v, prefix, suffix = inputs
  lengths = jnp.asarray(prefix_length), jnp.asarray(suffix_length)
  out, lse = run(q, k, v, prefix, lengths[0], suffix, lengths[1], jnp.int32(layer))
  in_prefix = np.arange(prefix[0].shape[3]) < prefix_length[:, None]
  in_suffix = np.arange(suffix[0].shape[4]) < suffix_length[:, :, None]
  want, wanted_lse = oracle(q, k, v, prefix, in_prefix, suffix, in_suffix, layer)
  assert out.dtype == v.dtype and lse.dtype == jnp.float32
  assert error(out, want) < tolerance
  np.testing.assert_allclose(lse, wanted_lse, rtol=tolerance, atol=tolerance)


@st.composite
def lengths(draw, slots=(S, R), devices=None):
  """prefix_length [P], suffix_length [P G]; with a last axis for the devices, if they are given."""
  last = [] if devices is None else [devices]
  shapes = [P, *last], [P, G, *last]
  counts = (st.lists(st.integers(0, most), min_size=n, max_size=n) for most, n in zip(slots, map(math.prod, shapes)))
  return [np.array(draw(x)).reshape(shape) for x, shape in zip(counts, shapes)]


@settings(max_examples=8)
@given(lengths(), st.integers(0, N - 1), st.integers(0, 99))
def test_a_branch_reads_its_layer_its_prompt_its_own_suffix_and_itself(run, lengths, layer, seed):
  check(run, random_inputs(seed), *lengths, layer=layer)


@pytest.mark.parametrize("heads", [(4, 4), (6, 1), (20, 2)])
def test_query_heads_read_the_keys_of_their_group(run, heads):
  check(run, random_inputs(1, heads=heads), np.array([S, 4]), np.full((P, G), 2))


@pytest.mark.parametrize("implementation, devices", SHARDED)
@settings(max_examples=3)
@given(st.data(), st.integers(0, 99))
def test_slots_cut_over_devices_are_one_cache_and_the_new_token_counts_once(implementation, devices, data, seed):
  s, r = 16, 8
  prefix_length, suffix_length = data.draw(lengths((s // devices, r // devices), devices))
  q, k, v, prefix, suffix = random_inputs(seed, slots=(s, r))
  out, lse = sharded(implementation, devices)(
    q, k, v, prefix, jnp.asarray(prefix_length), suffix, jnp.asarray(suffix_length), jnp.int32(LAYER)
  )
  seen = [
    (np.arange(size // devices) < length[..., None]).reshape(*length.shape[:-1], size)
    for length, size in ((prefix_length, s), (suffix_length, r))
  ]
  want, wanted_lse = oracle(q, k, v, prefix, seen[0], suffix, seen[1], LAYER)
  assert error(out, want) < FORWARD
  np.testing.assert_allclose(lse, wanted_lse, rtol=FORWARD, atol=FORWARD)


def test_an_empty_cache_returns_the_new_value(run):
  q, k, v, prefix, suffix = random_inputs(2)
  out, _ = run(q, k, v, prefix, jnp.zeros(P, int), suffix, jnp.zeros((P, G), int), jnp.int32(LAYER))
  np.testing.assert_allclose(out, np.repeat(v, H // K, axis=2), rtol=1e-6)


@pytest.mark.parametrize("garbage", [1e8, np.inf, np.nan])
def test_slots_past_the_lengths_may_hold_anything(run, garbage):
  q, k, v, prefix, suffix = random_inputs(3)
  prefix_length, suffix_length = np.array([7, 0]), np.array([[0, 3, 5], [1, 1, 2]])
  beyond = np.arange(S) >= prefix_length[:, None]
  wild_prefix = tuple(jnp.where(beyond[:, None, :, None], garbage, x) for x in prefix)
  beyond = np.arange(R) >= suffix_length[:, :, None]
  wild_suffix = tuple(jnp.where(beyond[:, :, None, :, None], -garbage, x) for x in suffix)
  lengths = (jnp.asarray(prefix_length), jnp.asarray(suffix_length))
  for got, want in zip(
    run(q, k, v, wild_prefix, lengths[0], wild_suffix, lengths[1], jnp.int32(LAYER)),
    run(q, k, v, prefix, lengths[0], suffix, lengths[1], jnp.int32(LAYER)),
  ):
    np.testing.assert_array_equal(got, want)


def test_large_scores_do_not_overflow(run):
  q, k, v, prefix, suffix = random_inputs(4)
  inputs = (q * 30, k * 30, v, (prefix[0] * 30, prefix[1]), (suffix[0] * 30, suffix[1]))
  check(run, inputs, np.array([S, 4]), np.full((P, G), 2), tolerance=1e-4)


def test_bfloat16_errs_by_its_rounding_only(run):
  """The result is rounded to 8 bits, an error of 2^-9 at most, and so are the weights before they meet the values."""
  check(run, random_inputs(5, jnp.bfloat16), np.array([S, 4]), np.full((P, G), 3), tolerance=2**-8)


def test_the_kernel_takes_a_step_for_each_block_that_holds_a_slot():
  """By hand, blocks of 4: lengths 9, 0, 4, 1 have 3, 0, 1, 1 blocks; nothing at all still is a step."""
  row, block, total = pallas_tpu._steps(jnp.array([9, 0, 4, 1]), 4, 11)
  assert int(total) == 5
  assert row[:5].tolist() == [0, 0, 0, 2, 3]
  assert block[:5].tolist() == [0, 1, 2, 0, 0]
  assert (max(row), max(block)) == (3, 2)
  assert int(pallas_tpu._steps(jnp.zeros(4, int), 4, 11).total) == 1


def test_more_blocks_than_the_chip_lists_are_refused():
  with pytest.raises(ValueError, match=r"70000 rows of 1 blocks of 4 slots; the most is 65536: take fewer at a time"):
    jax.eval_shape(lambda x: pallas_tpu._steps(x, 4, 4), jax.ShapeDtypeStruct((70000,), jnp.int32))


def test_a_new_token_is_written_into_its_slot_of_every_layer_and_branch_and_nowhere_else():
  _, k, v, _, suffix = random_inputs(6)
  new = tuple(jnp.stack([x * layer for layer in range(N)]) for x in (k, v))
  for got, before, x in zip(write_suffix(suffix, new, jnp.int32(3)), suffix, new):
    want = np.array(before)
    want[:, :, :, :, 3] = x
    np.testing.assert_array_equal(got, want)


def test_a_prefix_is_written_into_its_row_of_every_layer_and_nowhere_else():
  before = tuple(jnp.arange(2 * 3 * 4 * 5 * 6.0).reshape(2, 3, 4, 5, 6) * sign for sign in (1, -1))
  new = tuple(x[:, :1] + 1000 for x in before)
  for got, old, x in zip(write_prefix(before, new, jnp.int32(2)), before, new):
    want = np.array(old)
    want[:, 2] = x[:, 0]
    np.testing.assert_array_equal(got, want)
  with pytest.raises(ValueError, match=r"wanted \(\) and \(2, 1, 4, 5, 6\)"):
    write_prefix(before, before, jnp.int32(2))


def test_each_prompts_branches_may_write_another_slot():
  _, k, v, _, suffix = random_inputs(6)
  new = tuple(jnp.stack([x * layer for layer in range(N)]) for x in (k, v))
  slots = jnp.arange(P, dtype=jnp.int32) % suffix[0].shape[4]
  for got, before, x in zip(write_suffix(suffix, new, slots), suffix, new):
    want = np.array(before)
    for p, slot in enumerate(slots):
      want[:, p, :, :, slot] = x[:, p]
    np.testing.assert_array_equal(got, want)
  with pytest.raises(ValueError, match=r"slot.shape=\(7,\), new .*; wanted \(\) or"):
    write_suffix(suffix, new, jnp.zeros(7, jnp.int32))


def test_the_prefix_is_never_copied_for_each_branch():
  """XLA's form on this machine copies the layer, no more."""
  g, kv, s, d = 16, 2, 8192, 64
  new, cache = (jax.ShapeDtypeStruct(x, jnp.float32) for x in ((1, g, kv, d), (N, 1, kv, s, d)))
  suffix = jax.ShapeDtypeStruct((N, 1, g, kv, 4, d), jnp.float32)
  integers = [jax.ShapeDtypeStruct(x, jnp.int32) for x in ((1,), (1, g), ())]
  lowered = jax.jit(functools.partial(prefix_decode, implementation="xla")).lower(
    new, new, new, (cache, cache), integers[0], (suffix, suffix), *integers[1:]
  )
  layer_bytes, scores_bytes = 2 * kv * s * d * 4, 2 * g * kv * s * 4
  assert lowered.compile().memory_analysis().temp_size_in_bytes < 1.1 * (layer_bytes + scores_bytes)


def arguments(**change):
  shapes = {
    "q": (P, G, H, D), "k": (P, G, K, D), "v": (P, G, K, D), "prefix": (N, P, K, S, D), "prefix_length": (P,),
    "suffix": (N, P, G, K, R, D), "suffix_length": (P, G), "layer": (),
  } | change  # fmt: skip
  make = lambda name, x: jnp.ones(x, int if "length" in name or name == "layer" else float)  # noqa: E731
  args = {name: make(name, x) if isinstance(x, tuple) else x for name, x in shapes.items()}
  return {name: (x, x) if name in ("prefix", "suffix") else x for name, x in args.items()}


@pytest.mark.parametrize(
  "change, message",
  [
    ({"q": (P, G, 3, D)}, r"3 query heads a multiple of 2 key-value heads"),
    ({"k": (P, G + 1, K, D), "v": (P, G + 1, K, D)}, r"k.shape=\(2, 4, 2, 8\).*wanted \[P G H D\]"),
    ({"v": (P, G, K, D + 1)}, r"v.shape=\(2, 3, 2, 9\)"),
    ({"q": (P, G, H, D + 1)}, r"q.shape=\(2, 3, 4, 9\)"),
    ({"prefix": (N, P, K + 1, S, D)}, r"prefix \[\(3, 2, 3, 11, 8\).*wanted twice \[N P K S D\] = \(3, 2, 2, 11, 8\)"),
    ({"prefix": (P, K, S, D)}, r"prefix of shapes \[\(2, 2, 11, 8\).*wanted a pair, keys and values \[N P K S D\]"),
    ({"prefix": (N, P, K, 0, D)}, r"every size must be at least 1.*a cache without tokens has a slot and length 0"),
    ({"suffix": (N, P, G + 1, K, R, D)}, r"suffix \[\(3, 2, 4, 2, 5, 8\).*\[N P G K R D\] = \(3, 2, 3, 2, 5, 8\)"),
    ({"suffix": (N + 1, P, G, K, R, D)}, r"suffix \[\(4, 2, 3, 2, 5, 8\)"),
    ({"prefix_length": (P, 1)}, r"prefix_length.shape=\(2, 1\).*wanted \(2,\), \(2, 3\) and \(\)"),
    ({"suffix_length": (G, P)}, r"suffix_length.shape=\(3, 2\)"),
    ({"layer": (1,)}, r"layer.shape=\(1,\).*one index"),
    ({"layer": N}, r"layer=3 is not one of the caches' 3, counted from 0"),
    ({"layer": np.int64(-1)}, r"layer=-1 is not one of"),
    ({"layer": 1.0}, r"layer.dtype=dtype\('float32'\) must be signed integers"),
    ({"layer": jnp.ones(())}, r"layer.dtype=dtype\('float32'\) must be signed integers"),
    ({"prefix_length": jnp.ones(P)}, r"prefix_length.dtype=dtype\('float32'\)"),
    ({"v": jnp.ones((P, G, K, D), jnp.bfloat16)}, r"float32, float32, bfloat16, .*cast them to one floating type"),
    ({"prefix": jnp.ones((N, P, K, S, D), jnp.bfloat16)}, r"cast them to one floating type"),
    ({"axis": "slots"}, r"axis='slots' is no mesh axis here; call prefix_decode inside a shard_map that has it"),
    ({"implementation": "paged"}, r"implementation='paged' is not one of \['pallas_tpu', 'reference', 'xla'\]"),
  ],
)
def test_the_door_names_what_is_wrong(change, message):
  with pytest.raises(ValueError, match=message):
    prefix_decode(**arguments(**change))


@pytest.mark.parametrize("cache", [(), (1,) * 3, 1])
def test_a_cache_is_a_pair(cache):
  prefix = jnp.ones((N, P, K, S, D)) if cache == 1 else tuple(jnp.ones((N, P, K, S, D)) for _ in cache)
  with pytest.raises(ValueError, match=r"prefix of shapes .*wanted a pair, keys and values \[N P K S D\]"):
    prefix_decode(**arguments() | {"prefix": prefix})


def test_a_token_sees_itself_in_float32_without_the_compilers_help():
  """Products of up to a hundred, each of which bfloat16 would round."""
  random = np.random.default_rng(0)
  q, k = (jnp.asarray(random.normal(0, 4, (1, 1, 1, 128)), jnp.bfloat16) for _ in range(2))
  empty = jnp.ones((1, 1, 1, 1, 128), jnp.bfloat16)
  with jax.disable_jit():
    _, lse = prefix_decode_with_lse(
      q, k, k, (empty,) * 2, jnp.zeros(1, int), (empty[None],) * 2, jnp.zeros((1, 1), int), jnp.int32(0),
      implementation="xla",
    )  # fmt: skip
  want = (np.asarray(q, np.float64) * np.asarray(k, np.float64)).sum() * 128**-0.5
  np.testing.assert_allclose(lse, want, atol=1e-4)


@pytest.mark.parametrize("layer", [2, np.int64(2)])
def test_a_layer_may_be_a_plain_number(layer):
  q, k, v, prefix, suffix = random_inputs(7)
  operands = q, k, v, prefix, jnp.full(P, S), suffix, jnp.full((P, G), R)
  np.testing.assert_array_equal(prefix_decode(*operands, layer), prefix_decode(*operands, jnp.int32(2)))


def test_without_a_name_the_door_takes_an_implementation():
  given = arguments()
  np.testing.assert_allclose(prefix_decode(**given), jnp.ones((P, G, H, D)), rtol=1e-6)


def test_the_kernel_refuses_types_that_the_chip_lacks():
  half = {name: jnp.ones((P, G, x, D), jnp.float16) for name, x in (("q", H), ("k", K), ("v", K))}
  caches = {"prefix": jnp.ones((N, P, K, S, D), jnp.float16), "suffix": jnp.ones((N, P, G, K, R, D), jnp.float16)}
  with pytest.raises(ValueError, match=r"q.dtype=dtype\('float16'\) is neither bfloat16 nor float32; cast it or take"):
    prefix_decode(**arguments(**half, **caches), implementation="pallas_tpu")

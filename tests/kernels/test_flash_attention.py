"""Every implementation of flash_attention against a float64 softmax over the slots that the docstring says are seen."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import error, interpreted, oracle, random_inputs, rows, sees, splash_errors

from qwenlong_jax.kernels.flash_attention import (
  IMPLEMENTATIONS,
  flash_attention,
  flash_attention_with_lse,
  pallas_tpu,
  reference,
  xla,
)

B, L, H, K, D = 2, 37, 4, 2, 8
MANY = 300  # slots: several blocks of a TPU kernel, the last of them ragged
# (block, SHORT, BAND): pairs of ragged blocks; a short row in bands and a long one in pairs; what is used on CPU.
BLOCKS = [(6, 0, 160), (64, 64, 16), (xla.BLOCKS["default"], xla.SHORT, xla.BAND)]
TILES = [  # queries, keys; keys at a time forward and backward, the same under the mask
  pallas_tpu.Tiles(128, 256, 256, 128, 128, 256, wide=False),
  pallas_tpu.Tiles(256, 256, 128, 256, 256, 128, wide=True),
]
SIZES = {"reference": [None], "xla": BLOCKS, "pallas_tpu": TILES}
FORWARD, GRADIENT = 1e-5, 1e-4


@pytest.fixture(scope="module", params=[(name, size) for name in IMPLEMENTATIONS for size in SIZES[name]], ids=str)
def run(request):
  """(q, k, v, segment, position, cotangent) -> (out, (dq, dk, dv)) of one implementation at one block size."""
  return compiled(*request.param)


@functools.cache
def compiled(implementation, size):
  @jax.jit
  def run(q, k, v, segment, position, cotangent, lse_cotangent):
    attend = lambda q, k, v: flash_attention_with_lse(  # noqa: E731
      q, k, v, segment, position, implementation=implementation
    )
    (out, lse), vjp = jax.vjp(attend, q, k, v)
    return out, lse, vjp((cotangent, lse_cotangent))

  def patched(*args, lse_cotangent=None):
    with pytest.MonkeyPatch.context() as patch, interpreted():
      if implementation == "xla":
        for name, value in zip(("BLOCKS", "SHORT", "BAND"), ({"default": size[0]}, *size[1:])):
          patch.setattr(xla, name, value)
      if implementation == "pallas_tpu":
        patch.setattr(pallas_tpu, "tiles_for", lambda *_: size)
      q = args[0]
      return jax.block_until_ready(run(*args, jnp.zeros(q.shape[:3]) if lse_cotangent is None else lse_cotangent))

  return patched


def check(run, segment, position, inputs=None, forward=FORWARD, gradient=GRADIENT):
  q, k, v, cotangent = inputs or random_inputs((B, L, H, K, D))
  out, lse, gradients = run(q, k, v, jnp.asarray(segment), jnp.asarray(position), cotangent)
  wanted, wanted_lse, wanted_gradients = oracle(q, k, v, np.asarray(segment), np.asarray(position), cotangent)
  assert error(out, wanted) < forward
  np.testing.assert_allclose(lse, wanted_lse, rtol=forward, atol=forward)
  for name, got, want in zip("qkv", gradients, wanted_gradients):
    assert error(got, want) < gradient, f"d{name}"
  return out, gradients


def counted(*lengths):
  return np.concatenate([np.arange(n) for n in lengths])


LAYOUTS = {
  "causal": (np.zeros(L, int), np.arange(L)),
  "causal, another segment": (np.full(L, 1), np.arange(L)),
  "packed documents": (np.repeat([1, 2, 3], [11, 1, 25]), counted(11, 1, 25)),
  "padding at the end": (np.repeat([1, -1], [20, 17]), counted(20, 17)),
  "padding at the start": (np.repeat([-1, 1], [17, 20]), counted(17, 20)),
  "shared prefix, three branches": (
    np.repeat([0, 1, 2, 3, -1], [15, 9, 1, 8, 4]),
    np.concatenate([np.arange(15), 15 + counted(9, 1, 8), np.zeros(4, int)]),
  ),
  "branches without a prefix": (np.repeat([1, 2], [30, 7]), counted(30, 7)),
  "nothing but padding": (np.full(L, -1), np.zeros(L, int)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_the_softmax_over_what_a_slot_sees(run, layout):
  """Beside the layout, in the same batch, plain causal attention: rows do not meet."""
  segment, position = (np.stack(pair) for pair in zip(LAYOUTS[layout], LAYOUTS["causal"]))
  check(run, segment, position)


@given(st.tuples(rows(L), rows(L)), st.integers(0, 99))
def test_any_layout_in_any_order_of_branches(run, pair, seed):
  segment, position = (np.stack(x) for x in zip(*pair))
  check(run, segment, position, random_inputs((B, L, H, K, D), seed))


@settings(max_examples=8)
@given(st.tuples(rows(MANY), rows(MANY)), st.integers(0, 99))
def test_any_layout_over_several_blocks(run, pair, seed):
  segment, position = (np.stack(x) for x in zip(*pair))
  check(run, segment, position, random_inputs((B, MANY, H, K, D), seed))


@pytest.mark.parametrize(
  "local, options",
  [("xla", {}), ("xla", {"block": 64}), *(("pallas_tpu", {"tiles": tiles}) for tiles in TILES)],
  ids=str,
)
def test_over_other_keys_than_its_own(local, options):
  """What a ring's device does: more keys than queries, any order, padding; of the second row all keys are hidden."""
  module = {"xla": xla, "pallas_tpu": pallas_tpu}[local]
  random, (b, l, m) = np.random.default_rng(0), (2, MANY, 2 * MANY)
  q, _, _, cotangent = random_inputs((b, l, H, K, D), 7)
  _, k, v, _ = random_inputs((b, m, H, K, D), 8)
  queries, keys = ((random.integers(-1, 3, (b, n)), random.integers(0, 500, (b, n))) for n in (l, m))
  keys[1][1] += 1000  # positions of the second row, after all of its queries
  slots = [pallas_tpu.Slots(*(jnp.asarray(x) for x in pair)) for pair in (queries, keys)]
  forward, backward = (jax.jit(functools.partial(run, **options)) for run in (module.forward, module.backward))
  with interpreted():
    out, lse = jax.block_until_ready(forward(q, k, v, *slots))
    delta = (cotangent * out).sum(-1)
    found = jax.block_until_ready(backward(q, k, v, cotangent, lse, delta, *slots))
  wanted, wanted_lse, gradients = oracle(q, k, v, *queries, cotangent, keys=keys)
  assert error(out, wanted) < FORWARD
  np.testing.assert_allclose(lse, wanted_lse, rtol=FORWARD, atol=FORWARD)
  for name, got, want in zip("qkv", found, gradients):
    assert error(got, want) < GRADIENT, f"d{name}"
  np.testing.assert_array_equal(out[1], 0)
  np.testing.assert_array_equal(lse[1], np.float32(-1e30))
  assert not any(np.asarray(x)[1].any() for x in found)


def test_the_log_sum_exp_has_its_gradient(run):
  segment, position = (np.broadcast_to(x, (B, L)) for x in LAYOUTS["shared prefix, three branches"])
  q, k, v, cotangent = random_inputs((B, L, H, K, D), 5)
  lse_cotangent = cotangent[..., 0]
  _, _, gradients = run(q, k, v, segment, position, cotangent, lse_cotangent=lse_cotangent)
  _, _, wanted = oracle(q, k, v, segment, position, cotangent, lse_cotangent)
  for name, got, want in zip("qkv", gradients, wanted):
    assert error(got, want) < GRADIENT, f"d{name}"


def test_padding_gives_zero_and_takes_and_gives_no_gradient(run):
  segment = np.stack([np.full(L, -1), np.repeat([1, -1], [20, 17])])
  position = np.broadcast_to(np.arange(L), (B, L))
  out, (dq, dk, dv) = check(run, segment, position)
  for array in (out, dq, dk, dv):
    np.testing.assert_array_equal(np.asarray(array)[segment == -1], 0.0)


def test_large_scores_do_not_overflow(run):
  """Scores of several hundred: one slot has all the weight, and the gradients stay finite."""
  q, k, v, cotangent = random_inputs((B, L, H, K, D), 1)
  check(run, *(np.broadcast_to(x, (B, L)) for x in LAYOUTS["causal"]), [q * 30, k * 30, v, cotangent], 1e-4, 1e-3)


@pytest.mark.parametrize("heads, groups", [(3, 3), (6, 1)])
def test_query_heads_read_the_keys_of_their_group(run, heads, groups):
  segment, position = (x[None, :13] for x in LAYOUTS["shared prefix, three branches"])
  check(run, segment, position, random_inputs((1, 13, heads, groups, D), 2))


@pytest.mark.parametrize("length", [1, 12])
def test_lengths_that_are_less_than_a_block_or_whole_blocks(run, length):
  check(run, np.zeros((1, length), int), np.arange(length)[None], random_inputs((1, length, 2, 1, D), 3))


def test_bfloat16_errs_by_its_rounding_only(run):
  segment, position = (np.broadcast_to(x, (B, L)) for x in LAYOUTS["shared prefix, three branches"])
  inputs = random_inputs((B, L, H, K, D), 4, jnp.bfloat16)
  out, gradients = check(run, segment, position, inputs, forward=2**-7, gradient=2**-6)
  assert {x.dtype for x in (out, *gradients)} == {jnp.dtype(jnp.bfloat16)}


def whole(q, k, v, segment, position):
  return jax.vjp(lambda q, k, v: flash_attention(q, k, v, segment, position, implementation="xla"), q, k, v)[1](q)


def shares(q, k, v, segment, position):
  """Forward and backward of a device of the ring, each with keys of its own."""
  slots = xla.Slots(segment, position)
  out, lse = xla.forward(q, k, v, slots, slots)
  return xla.backward(q, k, v, out, lse, lse, slots, slots)


@pytest.mark.parametrize("run", [whole, shares])
def test_memory_grows_with_the_length_not_with_its_square(run, monkeypatch):
  monkeypatch.setattr(xla, "BLOCKS", {"default": 64})

  def temporary(length):
    shape = jax.ShapeDtypeStruct((1, length, 2, D), jnp.float32)
    slots = jax.ShapeDtypeStruct((1, length), jnp.int32)
    compiled = jax.jit(run).lower(shape, shape, shape, slots, slots).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(8192) < 2.2 * temporary(4096)
  assert temporary(8192) < 8192 * 8192 * 4 / 32


PREFIX = np.repeat([0, 1, 2, 3], [64, 16, 16, 32]), np.concatenate([np.arange(64), 64 + counted(16, 16, 32)])
DOCUMENTS = np.repeat([1, 2, 3, -1], [32, 16, 48, 32]), counted(32, 16, 48, 32)


@pytest.mark.parametrize("size", [8, 16])
def test_pairs_of_blocks_in_which_the_mask_shows_nothing_are_never_visited(size, monkeypatch):
  """Every visit's query block, key block and whether it takes a mask, in both passes, of two rows of any shape."""
  segment, position = (np.stack(pair) for pair in zip(PREFIX, DOCUMENTS))
  visits, bias = [], xla._bias
  # A block's slots say which it is: positions and segments of a row's blocks differ.
  note = lambda *seen: visits.append(tuple(tuple(x.ravel().tolist()) for x in seen))  # noqa: E731

  def watched(queries, keys, every):
    jax.debug.callback(note, *queries, *keys, every, ordered=True)
    return bias(queries, keys, every)

  monkeypatch.setattr(xla, "_bias", watched)
  monkeypatch.setattr(xla, "BLOCKS", {"default": size})
  monkeypatch.setattr(xla, "SHORT", 0)
  q, k, v, _ = random_inputs((2, 128, H, K, D))
  attend = lambda *args: whole(*args)  # noqa: E731  (compiled anew for each size)
  jax.block_until_ready(jax.jit(attend)(q, k, v, jnp.asarray(segment), jnp.asarray(position)))
  jax.effects_barrier()
  wanted = []
  for row, place in zip(segment, position):
    for i, j in np.ndindex(128 // size, 128 // size):
      queries, keys = ([x[n * size : (n + 1) * size] for x in (row, place)] for n in (i, j))
      mask = sees(*queries, *keys)
      if mask.any():
        wanted.append((*(tuple(x.tolist()) for x in (*queries, *keys)), (bool(mask.all()),)))
  assert visits == 2 * wanted


def test_without_a_name_the_door_takes_an_implementation_and_refuses_unknown_ones():
  q, k, v, _ = random_inputs((B, L, H, K, D))
  segment, position = (jnp.broadcast_to(x, (B, L)) for x in LAYOUTS["causal"])
  default = jax.jit(flash_attention)(q, k, v, segment, position)
  np.testing.assert_allclose(default, reference.attention(q, k, v, segment, position)[0], atol=1e-5, rtol=0)
  with pytest.raises(ValueError, match=r"implementation='cuda' is not one of \['pallas_tpu', 'reference', 'xla'"):
    flash_attention(q, k, v, segment, position, implementation="cuda")


@pytest.mark.parametrize(
  "change, message",
  [
    ({"q": (B, L, 3, D)}, "3 query heads must be a multiple of 2 key-value heads"),
    ({"v": (B, L, K, D + 1)}, r"shapes disagree: q.shape=\(2, 37, 4, 8\)"),
    ({"k": (B, L + 1, K, D), "v": (B, L + 1, K, D)}, "shapes disagree"),
    ({"segment": (B, L + 1)}, r"segment.shape=\(2, 38\).*must be \(2, 37\), one per slot"),
    ({"position": (L,)}, r"position.shape=\(37,\) must be \(2, 37\)"),
    ({"q": (B, 0, H, D)}, r"nothing to attend with: q.shape=\(2, 0, 4, 8\)"),
    ({"k": (L, K, D)}, r"wanted \[B L H D\], \[B L K D\]"),
  ],
)
def test_the_door_names_the_shape_that_is_wrong(change, message):
  shapes = {"q": (B, L, H, D), "k": (B, L, K, D), "v": (B, L, K, D), "segment": (B, L), "position": (B, L)} | change
  with pytest.raises(ValueError, match=message):
    flash_attention(**{name: jnp.zeros(shape, int if len(shape) < 4 else float) for name, shape in shapes.items()})


@pytest.mark.parametrize("tiles", TILES, ids=str)
@pytest.mark.parametrize("heads, documents", [((4, 1), (384,)), ((4, 2), (1, 126, 129))], ids=str)
def test_in_bfloat16_it_errs_no_more_than_splash_attention(tiles, heads, documents):
  """Both against float64 on the same bfloat16 inputs."""
  slots = np.repeat(np.arange(1, len(documents) + 1), documents)[None], counted(*documents)[None]
  q, k, v, cotangent = random_inputs((1, sum(documents), *heads, 128), 6, jnp.bfloat16)
  wanted, _, wanted_gradients = oracle(q, k, v, *slots, cotangent)
  out, _, gradients = compiled("pallas_tpu", tiles)(q, k, v, *(jnp.asarray(x) for x in slots), cotangent)
  errors = [error(out, wanted), *(error(*pair) for pair in zip(gradients, wanted_gradients))]
  usual = splash_errors(q, k, v, *slots, cotangent)
  print(errors, usual)
  assert all(mine <= 1.02 * theirs for mine, theirs in zip(errors, usual))


def test_the_doors_name_the_type_that_is_wrong():
  x, slots = jnp.zeros((1, 8, 2, 4)), jnp.zeros((1, 8), int)
  with pytest.raises(ValueError, match=r"types disagree: q.dtype=dtype\('float32'\), k.dtype=dtype\(bfloat16\)"):
    flash_attention(x, x.astype(jnp.bfloat16), x, slots, slots)
  with pytest.raises(ValueError, match=r"segment.dtype=dtype\('uint8'\).*must be signed integers; padding is"):
    flash_attention(x, x, x, slots.astype(jnp.uint8), slots)
  half = x.astype(jnp.float16)
  with pytest.raises(ValueError, match=r"q.dtype=dtype\('float16'\) is neither bfloat16 nor float32"):
    flash_attention(half, half, half, slots, slots, implementation="pallas_tpu")


def test_slots_may_be_narrow_integers():
  """A block of prefix and padding, of bounds that would not fit into 16 bits."""
  q, k, v, _ = random_inputs((1, L, H, K, D), 9)
  segment, position = (x[None] for x in LAYOUTS["shared prefix, three branches"])
  wide = flash_attention(q, k, v, jnp.asarray(segment), jnp.asarray(position))
  narrow = flash_attention(q, k, v, jnp.asarray(segment, jnp.int16), jnp.asarray(position, jnp.int16))
  np.testing.assert_array_equal(wide, narrow)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"keys": 200}, "every size must be a multiple of 128"),
    ({"forward": 384}, "keys=256 must divide by what is computed at a time"),
  ],
)
def test_block_sizes_are_checked(change, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TILES[0], **change)

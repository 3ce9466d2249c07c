"""Attention over a sequence cut over 1 to 8 devices, against float64 on the whole sequence."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P
from oracle import error, interpreted, oracle, random_inputs, rows, splash_errors

from qwenlong_jax.kernels.flash_attention import pallas_tpu, xla
from qwenlong_jax.kernels.flash_attention.blocks import Slots, live
from qwenlong_jax.kernels.ring_attention import from_ring, ring_attention, ring_attention_with_lse, to_ring

H, K, D = 4, 2, 8
TILES = pallas_tpu.Tiles(128, 128, 128, 128, 128, 128, wide=False)
FORWARD, GRADIENT = 1e-5, 1e-4


@functools.cache
def compiled(implementation, local, ring, block, size=3):
  """(q, k, v, segment, position, cotangents) of the whole sequence -> (out, lse, gradients).

  `block`: what is dealt; `size`: slots of a block of the local attention "xla", which are ragged then.
  """
  mesh = jax.make_mesh((ring,), ("ring",), devices=jax.devices()[:ring], axis_types=(jax.sharding.AxisType.Auto,))
  attend = functools.partial(ring_attention_with_lse, axis="ring", implementation=implementation, local=local)
  # Interpret mode's own program does not say over which axes its arrays vary.
  sharded = jax.shard_map(
    attend, mesh=mesh, in_specs=(P(None, "ring"),) * 5, out_specs=P(None, "ring"), check_vma=local == "xla"
  )

  @jax.jit
  def run(q, k, v, segment, position, cotangent, lse_cotangent):
    deal = functools.partial(to_ring, ring=ring, block=block)
    back = functools.partial(from_ring, ring=ring, block=block)
    slots = deal(segment), deal(position)
    (out, lse), vjp = jax.vjp(lambda q, k, v: sharded(q, k, v, *slots), deal(q), deal(k), deal(v))
    return back(out), back(lse), [back(x) for x in vjp((deal(cotangent), deal(lse_cotangent)))]

  def patched(*args):
    with pytest.MonkeyPatch.context() as patch, interpreted():
      patch.setattr(pallas_tpu, "tiles_for", lambda *_: TILES)
      patch.setattr(xla, "BLOCKS", {"default": size})
      return jax.block_until_ready(run(*args))

  return patched


def check(run, segment, position, seed=0, sizes=(H, K, D), dtype=jnp.float32):
  # Of bfloat16 what rounding the results, the scaled q and the weights makes: the bounds of one device.
  forward, gradient = (FORWARD, GRADIENT) if dtype == jnp.float32 else (2**-7, 2**-6)
  q, k, v, cotangent = random_inputs((*segment.shape, *sizes), seed, dtype)
  lse_cotangent = cotangent[..., 0].astype(jnp.float32)
  out, lse, gradients = run(q, k, v, jnp.asarray(segment), jnp.asarray(position), cotangent, lse_cotangent)
  wanted, wanted_lse, wanted_gradients = oracle(q, k, v, segment, position, cotangent, lse_cotangent)
  assert {x.dtype for x in (out, *gradients)} == {jnp.dtype(dtype)} and lse.dtype == jnp.float32
  assert error(out, wanted) < forward
  np.testing.assert_allclose(lse, wanted_lse, rtol=forward, atol=forward)
  for name, got, want in zip("qkv", gradients, wanted_gradients):
    assert error(got, want) < gradient, f"d{name}"


# Devices, slots dealt together, (H, K, D), type. A program each, which takes seconds to compile: so not all of them.
CASES = [
  (1, 4, (4, 2, 8), jnp.bfloat16),
  (2, 32, (3, 3, 16), jnp.float32),
  (4, 2, (6, 1, 8), jnp.bfloat16),
  (8, 1, (6, 2, 16), jnp.float32),
]


@pytest.mark.parametrize("implementation", ["ring", "gather"])
@pytest.mark.parametrize("ring, block, sizes, dtype", CASES)
@settings(max_examples=5)
@given(pair=st.tuples(rows(64), rows(64)), seed=st.integers(0, 99))
def test_it_is_attention_over_the_whole_sequence(implementation, ring, block, sizes, dtype, pair, seed):
  segment, position = (np.stack(x) for x in zip(*pair))
  check(compiled(implementation, "xla", ring, block), segment, position, seed, sizes, dtype)


@functools.cache
def usual_errors():
  """Two heads of two documents over four devices, in bfloat16: (arguments, float64's results, splash's errors)."""
  segment, position = np.repeat([[1, 2]], [300, 212], axis=1), np.r_[:300, :212][None]
  q, k, v, cotangent = random_inputs((1, 512, 2, 1, 128), 3, jnp.bfloat16)
  wanted, _, gradients = oracle(q, k, v, segment, position, cotangent)
  arguments = q, k, v, jnp.asarray(segment), jnp.asarray(position), cotangent, jnp.zeros((1, 512, 2))
  return arguments, (wanted, *gradients), splash_errors(q, k, v, segment, position, cotangent)


@pytest.mark.parametrize("local, most", [("pallas_tpu", 1.02), ("xla", 2**0.5)])
def test_in_bfloat16_it_errs_no_more_than_splash_attention(local, most):
  """That sees the whole sequence on one device; in a ring what the devices find is added up before it is rounded.

  "xla" rounds the weights too before they meet the values: once more than splash, each rounding of one size.
  """
  arguments, wanted, usual = usual_errors()
  out, _, gradients = compiled("ring", local, 4, 64, size=64)(*arguments)
  errors = [error(*pair) for pair in zip((out, *gradients), wanted)]
  print(errors, usual)
  assert all(mine <= most * theirs for mine, theirs in zip(errors, usual))


@pytest.mark.parametrize("implementation", ["ring", "gather"])
def test_float64_stays_float64(implementation):
  segment, position = np.ones((1, 64), int), np.arange(64)[None]
  with jax.enable_x64(True):
    q, k, v, cotangent = random_inputs((1, 64, H, K, D), dtype=jnp.float64)
    run = compiled(implementation, "xla", 2, 4, size=64)  # one pair, which is no loop
    out, _, gradients = run(q, k, v, jnp.asarray(segment), jnp.asarray(position), cotangent, 0 * cotangent[..., 0])
    wanted, _, wanted_gradients = oracle(q, k, v, segment, position, cotangent)
    assert max(error(*pair) for pair in zip((out, *gradients), (wanted, *wanted_gradients))) < 1e-14


@pytest.mark.parametrize("implementation, ring", [("ring", 4), ("gather", 2)])
def test_with_the_tpu_kernels_in_interpret_mode(implementation, ring):
  """A shared prefix and two branches with padding, dealt in blocks of 32; two rows, one of them plain."""
  slots = 32 * 2 * ring
  prefix, branch = slots // 2, slots // 4 - 10  # and 20 of padding
  segment = np.repeat([0, 1, 2, -1], [prefix, branch, branch, 20])
  position = np.concatenate([np.arange(prefix), *[prefix + np.arange(branch)] * 2, np.zeros(20, int)])
  segment, position = np.stack([segment, np.ones(slots, int)]), np.stack([position, np.arange(slots)])
  check(compiled(implementation, "pallas_tpu", ring, 32), segment, position)


@given(st.integers(1, 4), st.sampled_from([1, 2, 4]), st.integers(1, 3))
def test_dealing_blocks_round_and_collecting_them(ring, block, rounds):
  length = ring * block * rounds
  x = jnp.arange(2 * length * 3).reshape(2, length, 3)
  dealt = to_ring(x, ring, block)
  np.testing.assert_array_equal(from_ring(dealt, ring, block), x)
  device = np.asarray(dealt).reshape(2, ring, rounds, block, 3)
  for d in range(ring):
    for r in range(rounds):
      start = (r * ring + d) * block
      np.testing.assert_array_equal(device[:, d, r], x[:, start : start + block])


@pytest.mark.parametrize("ring, branch, most", [(8, 8, 1.04), (64, 8, 1.23), (8, 50, 1.03), (64, 50, 1.16)])
def test_every_device_has_about_as_many_live_pairs_at_every_step(ring, branch, most):
  """A prefix of 120K with 8 branches of 8K or 50K, blocks of 512: the slowest device of each step, over an exact
  division."""
  prefix, branch, size = 120 * 1024, branch * 1024, 512
  segment = np.repeat([0, *range(1, 9)], [prefix, *[branch] * 8])[None]
  position = np.concatenate([np.arange(prefix), *[prefix + np.arange(branch)] * 8])[None]
  pad = [(0, 0), (0, -segment.shape[1] % (ring * size))]
  row = Slots(*(to_ring(jnp.pad(x, pad, constant_values=-1), ring, size) for x in (segment, position)))
  some = np.asarray(live(row, row, size, size)[0][0])
  blocks = some.shape[0] // ring
  work = some.reshape(ring, blocks, ring, blocks).sum((1, 3))  # of a device with the keys of another
  lockstep = sum(max(work[d, (d - step) % ring] for d in range(ring)) for step in range(ring))
  assert lockstep / (some.sum() / ring) <= most


@pytest.mark.parametrize("waits", [True, False])
def test_a_planted_race_is_seen(waits):
  """So that the other tests' silence means something: a block is read before its copy has been waited for."""

  def kernel(x_hbm, out, block, semaphore):
    copy = pltpu.make_async_copy(x_hbm, block, semaphore)
    copy.start()
    if waits:
      copy.wait()
    out[...] = block[...]
    if not waits:
      copy.wait()

  shape = jax.ShapeDtypeStruct((8, 128), jnp.float32)
  call = functools.partial(
    pl.pallas_call,
    kernel,
    in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
    out_shape=shape,
    scratch_shapes=[pltpu.VMEM(shape.shape, shape.dtype), pltpu.SemaphoreType.DMA],
  )
  with contextlib.nullcontext() if waits else pytest.raises(AssertionError, match="a race"), interpreted():
    jax.block_until_ready(call()(jnp.ones(shape.shape)))


def test_the_door_gathers_short_sequences_and_sends_long_ones_round(monkeypatch):
  from qwenlong_jax.kernels import ring_attention as door

  asked = []
  monkeypatch.setattr(door, "choose", lambda name, table, preferred, *_: asked.append(preferred["default"]) or spy)
  spy = lambda q, *_: (q, q[..., 0])  # noqa: E731
  mesh = jax.make_mesh((8,), ("ring",), axis_types=(jax.sharding.AxisType.Auto,))
  for length in (65536, 65536 + 8):
    q, k = (jax.ShapeDtypeStruct((1, length, heads, 8), jnp.float32) for heads in (2, 1))
    slots = jax.ShapeDtypeStruct((1, length), jnp.int32)
    sharded = jax.shard_map(
      functools.partial(ring_attention, axis="ring"),
      mesh=mesh, in_specs=(P(None, "ring"),) * 5, out_specs=P(None, "ring"),
    )  # fmt: skip
    jax.eval_shape(sharded, q, k, k, slots, slots)
  assert asked == ["gather", "xla", "ring", "xla"]


def test_what_a_device_needs_nothing_from_is_not_computed():
  """Two documents on two devices: no pair of blocks is live for the other's keys, and their share is nothing at all."""
  row = Slots(jnp.repeat(jnp.array([[1, 2]]), 256, axis=1), jnp.tile(jnp.arange(256), 2)[None])
  mine, theirs = Slots(*(x[:, :256] for x in row)), Slots(*(x[:, 256:] for x in row))
  assert not live(mine, theirs, 128, 128)[0].any()
  q, k, v, g = random_inputs((1, 256, H, K, D))
  forward, backward = (jax.jit(functools.partial(f, tiles=TILES)) for f in (pallas_tpu.forward, pallas_tpu.backward))
  with interpreted():
    out, lse = jax.block_until_ready(forward(q, k, v, mine, theirs))
    gradients = jax.block_until_ready(backward(q, k, v, g, lse, jnp.zeros_like(lse), mine, theirs))
  np.testing.assert_array_equal(lse, np.float32(-1e30))
  assert not any(np.asarray(x).any() for x in (out, *gradients))


def test_the_doors_name_what_is_wrong():
  q, slots = jnp.zeros((1, 8, 2, 4)), jnp.zeros((1, 8), int)
  with pytest.raises(ValueError, match=r"axis='ring' is no mesh axis here; call ring_attention inside a shard_map"):
    ring_attention(q, q, q, slots, slots, axis="ring")
  with pytest.raises(ValueError, match=r"segment.shape=\(1, 7\) and position.shape=\(1, 8\) must be \(1, 8\)"):
    ring_attention(q, q, q, slots[:, :7], slots, axis="ring")
  mesh = jax.make_mesh((2,), ("ring",), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,))
  whole = "must be a whole number from 1 on, the slots that were dealt together"
  for options, message in (
    ({"local": "cuda"}, r"local='cuda' is not one of \['pallas_tpu', 'xla'\]"),
    ({"implementation": "zigzag"}, r"implementation='zigzag' is not one of \['gather', 'ring'\]"),
    ({"axis": "rings"}, r"axis='rings' is no mesh axis here"),
    *(({"block": block}, f"block={block} {whole}") for block in (0, 2.5, None)),
  ):
    attend = functools.partial(ring_attention, **{"axis": "ring"} | options)
    attend = jax.shard_map(attend, mesh=mesh, in_specs=(P(None, "ring"),) * 5, out_specs=P(None, "ring"))
    with pytest.raises(ValueError, match=message):
      attend(q, q, q, slots, slots)
  with pytest.raises(ValueError, match=r"10 slots are not whole rounds of ring=4 blocks of 2; pad to 16"):
    to_ring(jnp.zeros((1, 10)), 4, 2)
  for shape, ring, block in (((1, 10), 0, 2), ((1, 10), 2, -5), ((1, 10), 2, 2.5), ((10,), 2, 5)):
    with pytest.raises(ValueError, match=rf"ring={ring}, block={block}; wanted \[B L ...\], and whole numbers"):
      to_ring(jnp.zeros(shape), ring, block)

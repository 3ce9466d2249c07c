"""Few rows attend to many cached slots, on TPU: a grid over the blocks of slots that hold any, each read once.

Letters: N layers, B batch (prompts, or branches of prompts), K key-value heads, M rows that read the same slots, S
slots, D head dimension; T steps.

This is bound by memory: a step takes a block of keys and one of values as long as they take to arrive, while the
next ones do. The layer is picked in the block's address, so that the stacked cache is an operand as it lies. The list
of steps holds only blocks below the lengths; what is past the length in the last block of a row is masked by the second
of two bodies. Heads are the parallel dimension, since all have the same lengths: on chips of two cores K must be even
to use both.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels import chip
from qwenlong_jax.kernels.precision import dot, of_products
from qwenlong_jax.kernels.prefix_decode.parts import NOTHING, combined

Ref = Any  # a block in the chip's memory
LANES, SUBLANES = 128, 8
HIDDEN = -(2.0**100)  # a score past the length
MOST_STEPS = 2**16  # two lists of a quarter of a megabyte of the chip's scalar memory each
FEW = 16  # rows


class Steps(NamedTuple):
  """Which block each step of the grid takes; steps from `total` on are not run."""

  row: Int[Array, " T"]  # of the batch
  block: Int[Array, " T"]  # of its slots
  total: Int[Array, ""]


def slots_of_a_block(rows: int, head_dim: int, itemsize: int) -> int:
  """The size whose compute hides behind its transfer (kernels/prefix_decode/benchmark.py), half a MiB of keys or less.

  Few rows take less computation and belong to branches, whose lengths are short: smaller blocks, of which less is past
  the length.
  """
  width = -(-head_dim // LANES) * LANES
  return max(2 ** (18 if rows <= FEW else 19) // (width * itemsize), LANES)


def attend(
  q: Float[Array, "B K M D"],
  cache: tuple[Float[Array, "N B K S D"], Float[Array, "N B K S D"]],
  length: Int[Array, " B"],
  layer: Int[Array, ""],
  block: int | None = None,
) -> tuple[Float[Array, "B K M D"], Float[Array, "B K M"]]:
  """(out, log-sum-exp), as `parts.combined` wants them. `block`: slots that a step takes, a multiple of 16."""
  b, heads, m, d = q.shape
  layers, _, _, slots, _ = cache[0].shape
  if q.dtype not in (jnp.bfloat16, jnp.float32):
    raise ValueError(f"{q.dtype=} is neither bfloat16 nor float32; cast it or take implementation='xla'")
  size = min(block or slots_of_a_block(m, d, q.dtype.itemsize), slots)
  q = jnp.pad(q, ((0, 0), (0, 0), (0, -m % SUBLANES), (0, 0)))
  padded = q.shape[2]
  length = jnp.clip(length, 0, slots)  # an address out of bounds would stop the chip
  steps = _steps(length, size, slots)
  operands = jnp.clip(layer, 0, layers - 1)[None], steps.row, steps.block, length, q, *cache

  def cached(head: Array, step: Array, layer: Ref, row: Ref, block: Ref, length: Ref) -> tuple:
    return layer[0], row[step], head, block[step], 0

  def own(head: Array, step: Array, layer: Ref, row: Ref, block: Ref, length: Ref) -> tuple:
    return row[step], head, 0, 0

  rows = lambda width: pl.BlockSpec((None, None, padded, width), own)  # noqa: E731
  column = pltpu.VMEM((padded, LANES), jnp.float32)
  info = chip.tpu()
  # Inside shard_map: over which axes the result varies.
  axes = frozenset[str]().union(*(jax.typeof(x).manual_axis_type.varying for x in operands))
  varies = jax.sharding.ManualAxisType(varying=axes)
  out, lse = pl.pallas_call(
    functools.partial(_kernel, size=size, precision=of_products(q)),
    name="prefix_decode",
    out_shape=[
      jax.ShapeDtypeStruct((b, heads, padded, width), jnp.float32, manual_axis_type=varies) for width in (d, LANES)
    ],
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=4,
      grid=(heads, steps.total),
      in_specs=[rows(d), *[pl.BlockSpec((None, None, None, size, d), cached)] * 2],
      out_specs=[rows(d), rows(LANES)],
      scratch_shapes=[column, column, pltpu.VMEM((padded, d), jnp.float32)],
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"),
      vmem_limit_bytes=None if info is None else info.vmem_capacity_bytes - 2**22,
    ),
  )(*operands)
  # The kernel doesn't write rows without steps.
  some = (length > 0)[:, None, None]
  return jnp.where(some[..., None], out[:, :, :m], 0), jnp.where(some, lse[:, :, :m, 0], NOTHING)


prefix_decode = functools.partial(combined, attend)


def _steps(length: Int[Array, " B"], size: int, slots: int) -> Steps:
  """Row after row, its blocks in order; at least a step, of a row without slots if there is no other.

  Raises:
    ValueError: more steps than the chip's scalar memory holds.
  """
  rows, blocks = len(length), pl.cdiv(slots, size)
  if rows * blocks > MOST_STEPS:
    raise ValueError(f"{rows} rows of {blocks} blocks of {size} slots; the most is {MOST_STEPS}: take fewer at a time")
  counts = pl.cdiv(length, size)
  step = jnp.arange(rows * blocks, dtype=jnp.int32)
  past = step[:, None] >= jnp.cumsum(counts)  # the row is before that of the step
  row = jnp.minimum(past.sum(1, dtype=jnp.int32), rows - 1)
  block = jnp.minimum(step - (past * counts).sum(1, dtype=jnp.int32), blocks - 1)
  return Steps(row, block, jnp.maximum(counts.sum(dtype=jnp.int32), 1))


def _kernel(
  layer: Ref, row: Ref, block: Ref, length: Ref, q_ref: Ref, k_ref: Ref, v_ref: Ref, out_ref: Ref, lse_ref: Ref,
  top_ref: Ref, sum_ref: Ref, total_ref: Ref, *, size: int, precision: lax.Precision,
) -> None:  # fmt: skip
  """Softmax in powers of two. Keys and values are the stationary operands: they pass through the MXU once."""
  step = pl.program_id(1)
  left = length[row[step]] - block[step] * size  # slots from this block on
  scale = math.log2(math.e) * q_ref.shape[1] ** -0.5

  @pl.when(block[step] == 0)
  def _() -> None:
    top_ref[...] = jnp.full_like(top_ref, HIDDEN)
    sum_ref[...] = jnp.zeros_like(sum_ref)
    total_ref[...] = jnp.zeros_like(total_ref)

  def body(masked: bool) -> None:
    v = v_ref[...]
    scores = dot(q_ref[...], k_ref[...], (1, 1), precision) * scale
    if masked:
      scores = jnp.where(lax.broadcasted_iota(jnp.int32, scores.shape, 1) < left, scores, HIDDEN)
      v = jnp.where(lax.broadcasted_iota(jnp.int32, v.shape, 0) < left, v, 0)  # 0 times anything need not be 0
    before = top_ref[...]
    top = jnp.maximum(before, scores.max(1, keepdims=True))
    decay = jnp.exp2(before - top)
    weights = jnp.exp2(scores - top[:, :1])
    top_ref[...] = top
    sum_ref[...] = sum_ref[...] * decay + weights.sum(1, keepdims=True)
    total_ref[...] = total_ref[...] * decay[:, :1] + dot(weights.astype(v.dtype), v, (1, 0), precision)

  pl.when(left >= size)(lambda: body(False))
  pl.when(left < size)(lambda: body(True))

  @pl.when(left <= size)
  def _() -> None:
    out_ref[...] = total_ref[...] / sum_ref[:, :1]
    lse_ref[...] = (top_ref[...] + jnp.log2(sum_ref[...])) * math.log(2)

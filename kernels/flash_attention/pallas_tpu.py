"""Flash attention for TPU: a grid over the live pairs of blocks and nothing else; one fused backward kernel.

Letters: B rows, L slots, K key-value heads, H = K * r query heads, D head dimension; N query blocks of all rows
together, each of Q queries and R = r * Q rows, since the r heads of a group read the same keys; S keys in a block; T
keys of all rows together.

A step takes a query block and a key block, by one of two bodies: for pairs that the mask hides a part of, and for those
that it doesn't touch. Softmax in powers of two: q comes scaled by log2(e) D**-0.5. Where the MXU is 256 wide and D is
128, half of it would idle: there the row sums are taken as more columns of v, and the mask is added as more columns of
q (the identity) and of k (the mask), so that both cost no vector instruction.
"""

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from qwenlong_jax.kernels import chip
from qwenlong_jax.kernels.flash_attention.blocks import Pairs, Slots, live, pairs
from qwenlong_jax.kernels.flash_attention.operands import RESULTS
from qwenlong_jax.kernels.flash_attention.reference import NOTHING
from qwenlong_jax.kernels.precision import dot, of_products

Ref = Any  # a block in the chip's memory
LANES = 128
HIDDEN = -(2.0**100)  # a score that the mask hides; exact in bfloat16 too


@dataclass(frozen=True)
class Tiles:
  """Sizes of the blocks; the defaults are `tiles_for`'s."""

  queries: int  # positions in a query block, a multiple of 128
  keys: int  # in a key block, a multiple of 128
  forward: int  # keys whose scores exist at a time; divides `keys`
  backward: int
  masked_forward: int  # the same where the mask applies
  masked_backward: int
  wide: bool  # use the idle half of a 256 wide MXU; only for a head dimension of 128

  def __post_init__(self) -> None:
    chunks = self.forward, self.backward, self.masked_forward, self.masked_backward
    if any(size < 1 or size % LANES for size in (self.queries, self.keys, *chunks)):
      raise ValueError(f"{self}: every size must be a multiple of {LANES}")
    if any(self.keys % size for size in chunks):
      raise ValueError(f"{self}: keys={self.keys} must divide by what is computed at a time")

  @property
  def group(self) -> int:
    """Positions of one head that stand next to each other in a block's rows; wide: as many as one mask has columns."""
    return LANES if self.wide else self.queries


def tiles_for(repeats: int, head_dim: int, length: int, itemsize: int = 2) -> Tiles:
  """The sizes whose schedule was best (kernels/flash_attention/benchmark.py), smaller where there are fewer slots or
  elements are larger."""
  info = chip.tpu()
  wide = info is not None and info.mxu_column_size == 256 and head_dim == LANES
  slots = -(-length // LANES) * LANES
  rows = 2048 if slots > 512 else 4096  # a step with few keys takes more queries
  queries = min(max(rows // (LANES * repeats), 1) * LANES, slots)
  keys = 2048
  while keys > LANES and (keys > slots or keys * head_dim * max(queries * repeats, 2048) * itemsize > 2**30):
    keys //= 2
  forward, backward, masked_forward, masked_backward = (2048, 1024, 2048, 512) if wide else (512, 512, 256, 512)
  return Tiles(
    queries,
    keys,
    forward=min(keys, forward),
    backward=min(keys, backward),
    masked_forward=min(keys, masked_forward),
    masked_backward=min(keys, masked_backward),
    wide=wide,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attention(
  q: Float[Array, "B L H D"],
  k: Float[Array, "B L K D"],
  v: Float[Array, "B L K D"],
  segment: Int[Array, "B L"],
  position: Int[Array, "B L"],
  tiles: Tiles | None = None,
) -> tuple[Float[Array, "B L H D"], Float[Array, "B L H"]]:
  """(out, log-sum-exp); memory O(L)."""
  return _attention_forward(q, k, v, segment, position, tiles)[0]


def _attention_forward(q: Array, k: Array, v: Array, segment: Array, position: Array, tiles: Tiles | None) -> tuple:
  slots = Slots(segment, position)
  out, lse = checkpoint_name(forward(q, k, v, slots, slots, tiles, dtype=q.dtype), RESULTS)
  return (out, lse), (q, k, v, segment, position, out, lse)


def _attention_backward(tiles: Tiles | None, residuals: tuple, gradients: tuple[Array, Array]) -> tuple:
  q, k, v, segment, position, out, lse = residuals
  slots, (gradient, lse_gradient) = Slots(segment, position), gradients
  delta = (gradient.astype(jnp.float32) * out).sum(-1) - lse_gradient
  found = backward(q, k, v, gradient, lse, delta, slots, slots, tiles)
  return *(d.astype(x.dtype) for d, x in zip(found, (q, k, v))), None, None


attention.defvjp(_attention_forward, _attention_backward)


def forward(
  q: Float[Array, "B L H D"],
  k: Float[Array, "B M K D"],
  v: Float[Array, "B M K D"],
  queries: Slots,
  keys: Slots,
  tiles: Tiles | None = None,
  dtype: jnp.dtype = jnp.float32,
  block: int | None = None,
) -> tuple[Float[Array, "B L H D"], Float[Array, "B L H"]]:
  """(out in `dtype`, log-sum-exp) over these M keys, in any order; who sees none of them gives 0 and NOTHING.

  `block`: positions in which a tile's keys lie next to each other, at most; None: all of them.
  """
  tiled = Tiled.of(q, k, tiles, block)
  some, every = live(*tiled.padded(queries, keys), tiled.tiles.queries, tiled.tiles.keys)
  out, lse = _run_forward(tiled, q, k, v, queries, keys, pairs(some, every, by_key=False), dtype)
  # The kernel doesn't write blocks that are in no pair, and leaves hidden scores where a row sees nothing.
  seen = tiled.of_queries(some.any(2))[..., None] & (queries.segment >= 0)[..., None] & (lse > HIDDEN / 2)
  return jnp.where(seen[..., None], out, 0), jnp.where(seen, lse, NOTHING)


def backward(
  q: Float[Array, "B L H D"],
  k: Float[Array, "B M K D"],
  v: Float[Array, "B M K D"],
  gradient: Float[Array, "B L H D"],
  lse: Float[Array, "B L H"],
  delta: Float[Array, "B L H"],
  queries: Slots,
  keys: Slots,
  tiles: Tiles | None = None,
  block: int | None = None,
) -> tuple[Float[Array, "B L H D"], Float[Array, "B M K D"], Float[Array, "B M K D"]]:
  """Gradients of q, k, v in float32, of these M keys' share; `block` as in `forward`.

  `lse` is over all keys there are; `delta` is the sum of gradient times out, less the gradient of the lse.
  """
  tiled = Tiled.of(q, k, tiles, block)
  some, every = live(*tiled.padded(queries, keys), tiled.tiles.queries, tiled.tiles.keys)
  seen = (queries.segment >= 0)[..., None] & (lse > HIDDEN / 2)
  gradient, delta = jnp.where(seen[..., None], gradient, 0).astype(q.dtype), jnp.where(seen, delta, 0)
  lse = jnp.where(seen, lse, -HIDDEN)  # such a row's weights are 0
  todo = pairs(some, every, by_key=True)
  dq, dk, dv = _run_backward(tiled, q, k, v, gradient, lse, delta, queries, keys, todo)
  dq = jnp.where(tiled.of_queries(some.any(2))[..., None, None], dq * q.shape[-1] ** -0.5, 0)
  used = tiled.of_keys(some.any(1))[..., None, None]
  return dq, jnp.where(used, dk, 0), jnp.where(used, dv, 0)


@dataclass(frozen=True)
class Tiled:
  """The layouts in which the kernels read and write, and the ways there and back."""

  tiles: Tiles
  rows: int
  query_slots: int
  key_slots: int
  heads: int
  repeats: int
  head_dim: int

  @classmethod
  def of(
    cls, q: Float[Array, "B L H D"], k: Float[Array, "B M K D"], tiles: Tiles | None, block: int | None
  ) -> "Tiled":
    b, l, h, d = q.shape
    repeats, wide = h // k.shape[2], -(-d // LANES) * LANES
    if q.dtype not in (jnp.bfloat16, jnp.float32):
      raise ValueError(f"{q.dtype=} is neither bfloat16 nor float32; cast it or take implementation='xla'")
    if tiles and tiles.wide and wide != LANES:
      raise ValueError(f"{tiles} is wide, which takes a head dimension of at most {LANES}, not {d}")
    longest = max(l, k.shape[1])
    tiles = tiles or tiles_for(repeats, wide, min(longest, block or longest), q.dtype.itemsize)
    return cls(tiles, b, l, k.shape[1], k.shape[2], repeats, d)

  def scaled(self, q: Float[Array, "B L H D"]) -> Float[Array, "K N R D"]:
    """Rounded once: in bfloat16 the factor alone would lose a part in 500."""
    return self.queries((q.astype(jnp.float32) * math.log2(math.e) * self.head_dim**-0.5).astype(q.dtype))

  def queries(self, x: Float[Array, "B L H D"]) -> Float[Array, "K N R D"]:
    """Row order of a block: [queries / group, heads, group]; slots and D padded to whole blocks."""
    x = self._pad(x, self.tiles.queries)
    b, l, _, d = x.shape
    x = x.reshape(b, l // self.tiles.queries, -1, self.tiles.group, self.heads, self.repeats, d)
    return jnp.moveaxis(x, (4, 5), (0, 4)).reshape(self.heads, b * (l // self.tiles.queries), -1, d)

  def slots(self, x: Float[Array, "K N R D"]) -> Float[Array, "B L H D"]:
    groups = self.tiles.queries // self.tiles.group
    x = x.reshape(self.heads, self.rows, -1, groups, self.repeats, self.tiles.group, x.shape[-1])
    x = jnp.moveaxis(x, (0, 4), (4, 5)).reshape(self.rows, -1, self.heads * self.repeats, x.shape[-1])
    return x[:, : self.query_slots, :, : self.head_dim]

  def per_row(self, x: Float[Array, "B L H"]) -> Float[Array, "K N 1 R"]:
    x = jnp.pad(x, ((0, 0), (0, -self.query_slots % self.tiles.queries), (0, 0)))
    x = x.reshape(self.rows, -1, self.tiles.queries // self.tiles.group, self.tiles.group, self.heads, self.repeats)
    return jnp.moveaxis(x, (4, 5), (0, 4)).reshape(self.heads, -1, 1, self.tiles.queries * self.repeats)

  def per_head(self, x: Float[Array, "K N 1 R"]) -> Float[Array, "B L H"]:
    x = x.reshape(self.heads, self.rows, -1, self.tiles.queries // self.tiles.group, self.repeats, self.tiles.group)
    x = jnp.moveaxis(x, (0, 4), (4, 5)).reshape(self.rows, -1, self.heads * self.repeats)
    return x[:, : self.query_slots]

  def keys(self, x: Float[Array, "B L K D"]) -> Float[Array, "K T D"]:
    """All rows after each other, T = B * (L padded to whole key blocks)."""
    x = self._pad(x, self.tiles.keys)
    return jnp.moveaxis(x, 2, 0).reshape(self.heads, -1, x.shape[-1])

  def untiled_keys(self, x: Float[Array, "K T D"]) -> Float[Array, "B L K D"]:
    x = jnp.moveaxis(x.reshape(self.heads, self.rows, -1, x.shape[-1]), 0, 2)
    return x[:, : self.key_slots, :, : self.head_dim]

  def padded(self, queries: Slots, keys: Slots) -> tuple[Slots, Slots]:
    """Whole blocks; what is added is padding."""
    pad = lambda x, size: jnp.pad(x, ((0, 0), (0, -x.shape[1] % size)), constant_values=-1)  # noqa: E731
    return Slots(*(pad(x, self.tiles.queries) for x in queries)), Slots(*(pad(x, self.tiles.keys) for x in keys))

  def of_queries(self, x: Bool[Array, "B N"]) -> Bool[Array, "B L"]:
    """For every slot what is said of its block."""
    return jnp.repeat(x, self.tiles.queries, axis=1)[:, : self.query_slots]

  def of_keys(self, x: Bool[Array, "B N"]) -> Bool[Array, "B M"]:
    return jnp.repeat(x, self.tiles.keys, axis=1)[:, : self.key_slots]

  def _pad(self, x: Array, size: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), (0, 0), (0, -x.shape[-1] % LANES)))


def _run_forward(
  tiled: Tiled, q: Array, k: Array, v: Array, queries: Slots, keys: Slots, todo: Pairs, dtype: jnp.dtype
) -> tuple[Float[Array, "B L H D"], Float[Array, "B L H"]]:
  tiles = tiled.tiles
  operands = tiled.scaled(q), tiled.keys(k), tiled.keys(v), *(_rows(x) for x in tiled.padded(queries, keys))
  shape = operands[0].shape
  rows, d = shape[2:]
  query, key, per_row, key_slots, query_slots = _specs(rows, d, tiles)
  column = pltpu.VMEM((rows, LANES), jnp.float32)
  out, lse = _call(
    functools.partial(_forward_kernel, tiles=tiles, precision=of_products(q)),
    "flash_attention_forward",
    todo,
    operands,
    products=2,
    in_specs=[query, key, key, query_slots, key_slots],
    out_specs=[query, per_row],
    out_shape=[(shape, dtype), ((*shape[:2], 1, rows), jnp.float32)],
    scratch_shapes=[
      column,
      column,
      pltpu.VMEM((rows, d), jnp.float32),
      pltpu.VMEM((2, tiles.queries, LANES), jnp.int32),
    ],
  )
  return tiled.slots(out), tiled.per_head(lse)


def _run_backward(
  tiled: Tiled, q: Array, k: Array, v: Array, gradient: Array, lse: Array, delta: Array, queries: Slots, keys: Slots,
  todo: Pairs,
) -> tuple[Float[Array, "B L H D"], Float[Array, "B M K D"], Float[Array, "B M K D"]]:  # fmt: skip
  """Of q before its scale D**-0.5, of k and of v."""
  tiles = tiled.tiles
  slots = [_rows(x) for x in tiled.padded(queries, keys)]
  operands = tiled.scaled(q), tiled.keys(k), tiled.keys(v), *slots, tiled.queries(gradient)
  rows, d = operands[0].shape[2:]
  query, key, per_row, key_slots, query_slots = _specs(rows, d, tiles)
  total = pltpu.VMEM((tiles.keys, d), jnp.float32)
  dq, dk, dv = _call(
    functools.partial(_backward_kernel, tiles=tiles, precision=of_products(q)),
    "flash_attention_backward",
    todo,
    (*operands, tiled.per_row(lse * math.log2(math.e)), tiled.per_row(delta)),
    products=5,
    in_specs=[query, key, key, query_slots, key_slots, query, per_row, per_row],
    out_specs=[pl.BlockSpec(memory_space=pl.ANY), key, key],
    out_shape=[(x.shape, jnp.float32) for x in operands[:3]],
    scratch_shapes=[total, total, pltpu.VMEM((2, rows, d), jnp.float32), pltpu.SemaphoreType.DMA((2, 2))],
  )
  return tiled.slots(dq), tiled.untiled_keys(dk), tiled.untiled_keys(dv)


def _call(
  kernel: Callable,
  name: str,
  todo: Pairs,
  operands: tuple,
  *,
  products: int,
  in_specs: list,
  out_specs: list,
  out_shape: list,
  scratch_shapes: list,
) -> tuple:
  info = chip.tpu()
  # At least a step, of the first blocks: whoever sees nothing does not read what it writes.
  count = jnp.maximum(todo.count, 1)
  varies = jax.typeof(operands[0]).manual_axis_type  # inside shard_map: over which axes
  # So that the compiler, which can't look inside, knows how much can travel meanwhile. A causal mask shows half.
  q, k = operands[:2]
  shown = q.size // q.shape[-1] * k.shape[1] // 2
  bytes_accessed = sum(math.prod(shape) * jnp.dtype(dtype).itemsize for shape, dtype in out_shape)
  return pl.pallas_call(
    kernel,
    name=name,
    out_shape=[jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varies) for shape, dtype in out_shape],
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(operands[0].shape[0], count[0]),
      in_specs=in_specs,
      out_specs=out_specs,
      scratch_shapes=scratch_shapes,
    ),
    cost_estimate=pl.CostEstimate(
      flops=2 * products * shown * q.shape[-1],
      transcendentals=shown,
      bytes_accessed=bytes_accessed + sum(x.nbytes for x in operands),
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"),
      vmem_limit_bytes=None if info is None else info.vmem_capacity_bytes - 2**22,
    ),
  )(todo.codes, count, *operands)


def _specs(rows: int, d: int, tiles: Tiles) -> tuple[pl.BlockSpec, ...]:
  """Blocks of: q and what has its layout, k and v, a number per row, slots of the keys, slots of the queries."""
  query = lambda step, codes: _query(codes[step])  # noqa: E731
  key = lambda step, codes: _key(codes[step])  # noqa: E731
  return (
    pl.BlockSpec((None, None, rows, d), lambda head, step, codes, count: (head, query(step, codes), 0, 0)),
    pl.BlockSpec((None, tiles.keys, d), lambda head, step, codes, count: (head, key(step, codes), 0)),
    pl.BlockSpec((None, None, 1, rows), lambda head, step, codes, count: (head, query(step, codes), 0, 0)),
    pl.BlockSpec((8, tiles.keys), lambda head, step, codes, count: (0, key(step, codes))),
    pl.BlockSpec((8, tiles.queries), lambda head, step, codes, count: (0, query(step, codes))),
  )


def _rows(slots: Slots) -> Int[Array, "8 T"]:
  """Segments and positions as the first two of the eight sublanes of a register."""
  return jnp.pad(jnp.stack([x.ravel() for x in slots]), ((0, 6), (0, 0)))


def _query(code: Array) -> Array:
  return lax.shift_right_logical(code, jnp.int32(17))


def _key(code: Array) -> Array:
  return lax.shift_right_logical(code, jnp.int32(2)) & 0x7FFF


def _edges(codes: Array, count: Array, step: Array, block: Callable) -> tuple[Array, Array]:
  """(this step is the first, the last) of the run of steps with the same block."""
  mine = block(codes[step])
  first = (step == 0) | (block(codes[jnp.maximum(step - 1, 0)]) != mine)
  return first, (step == count[0] - 1) | (block(codes[step + 1]) != mine)


def _columns(query_slots: Array) -> Int[Array, "2 Q 128"]:
  """Segments and positions of the queries from above to below, the same in every lane."""
  columns = query_slots.T
  return jnp.stack([jnp.broadcast_to(columns[:, i : i + 1], (len(columns), LANES)) for i in range(2)])


def _bias(queries: Int[Array, "2 Q 128"], key_slots: Int[Array, "8 S"]) -> Float[Array, "Q S"]:
  """0 where the query sees the key, else HIDDEN."""
  segment_q, position_q = (jnp.tile(x, (1, key_slots.shape[1] // LANES)) for x in queries)
  segment_k, position_k = key_slots[0:1], key_slots[1:2]
  own = jnp.where(segment_k == 0, 0, -1)  # all bits of a segment count, but for the prefix
  sees = ((segment_q & own) == segment_k) & (position_k <= position_q)
  return jnp.where(sees, 0.0, HIDDEN)


def _masked_scores(
  q: Float[Array, "R D"], k: Float[Array, "S D"], bias: Float[Array, "Q S"], *, wide: bool, keys_first: bool,
  precision: lax.Precision,
) -> Array:  # fmt: skip
  """Scores [R S] under the mask (`keys_first`: [S R])."""
  product = functools.partial(dot, over=(1, 1), precision=precision)
  if not wide:
    repeats = q.shape[0] // bias.shape[0]
    if keys_first:
      return product(k, q) + jnp.tile(bias.T, (1, repeats))
    scores = product(q, k)
    return (scores.reshape(repeats, *bias.shape) + bias).reshape(scores.shape)
  groups = bias.shape[0] // LANES
  rows = q.shape[0] // groups
  identity = lax.broadcasted_iota(jnp.int32, (LANES, LANES), 0) == lax.broadcasted_iota(jnp.int32, (LANES, LANES), 1)
  identity = jnp.tile(identity.astype(q.dtype), (rows // LANES, 1))
  parts = []
  for i in range(groups):
    mine = jnp.concatenate([q[i * rows : (i + 1) * rows], identity], 1)
    theirs = jnp.concatenate([k, bias[i * LANES : (i + 1) * LANES].astype(k.dtype).T], 1)
    parts.append(product(theirs, mine) if keys_first else product(mine, theirs))
  return jnp.concatenate(parts, 1 if keys_first else 0)


def _forward_kernel(
  codes: Ref, count: Ref, q_ref: Ref, k_ref: Ref, v_ref: Ref, query_slots: Ref, key_slots: Ref, out_ref: Ref,
  lse_ref: Ref, top_ref: Ref, sum_ref: Ref, total_ref: Ref, columns: Ref, *, tiles: Tiles,
  precision: lax.Precision,
) -> None:  # fmt: skip
  step = pl.program_id(1)
  first, last = _edges(codes, count, step, _query)

  @pl.when(first)
  def _() -> None:
    top_ref[...] = jnp.full_like(top_ref, HIDDEN)
    sum_ref[...] = jnp.zeros_like(sum_ref)
    total_ref[...] = jnp.zeros_like(total_ref)
    columns[...] = _columns(query_slots[...])

  def body(masked: bool) -> None:
    size = tiles.masked_forward if masked else tiles.forward
    for start in range(0, tiles.keys, size):
      chunk = slice(start, start + size)
      k, v = k_ref[chunk, :], v_ref[chunk, :].astype(jnp.float32)
      if masked:
        bias = _bias(columns[...], key_slots[:, chunk])
        scores = _masked_scores(q_ref[...], k, bias, wide=tiles.wide, keys_first=False, precision=precision)
      else:
        scores = dot(q_ref[...], k, (1, 1), precision)
      before = top_ref[...]
      top = jnp.maximum(before, scores.max(1)[:, None])
      top_ref[...] = top
      decay = jnp.exp2(before - top)
      weights = jnp.exp2(scores - jnp.tile(top, (1, size // LANES)))
      if tiles.wide:
        both = dot(weights, jnp.concatenate([v, jnp.ones_like(v)], 1), (1, 0), precision)
        sums, values = both[:, LANES:], both[:, :LANES]
      else:  # the sum of each lane; of all lanes at the end
        sums = functools.reduce(operator.add, jnp.split(weights, size // LANES, axis=1))
        values = dot(weights, v, (1, 0), precision)
      sum_ref[...] = sum_ref[...] * decay + sums
      total_ref[...] = total_ref[...] * jnp.tile(decay, (1, total_ref.shape[1] // LANES)) + values

  masked = codes[step] & 1 == 1
  pl.when(masked)(lambda: body(True))
  pl.when(~masked)(lambda: body(False))

  @pl.when(last)
  def _() -> None:
    sums = sum_ref[...] if tiles.wide else jnp.broadcast_to(sum_ref[...].sum(1)[:, None], sum_ref.shape)
    out_ref[...] = (total_ref[...] / jnp.tile(sums, (1, total_ref.shape[1] // LANES))).astype(out_ref.dtype)
    lse_ref[...] = ((top_ref[...] + jnp.log2(sums)) * math.log(2)).T[:1]


def _backward_kernel(
  codes: Ref, count: Ref, q_ref: Ref, k_ref: Ref, v_ref: Ref, query_slots: Ref, key_slots: Ref, gradient_ref: Ref,
  lse_ref: Ref, delta_ref: Ref, dq_hbm: Ref, dk_ref: Ref, dv_ref: Ref, dk_total: Ref, dv_total: Ref, dq_ref: Ref,
  semaphore: Ref, *, tiles: Tiles, precision: lax.Precision,
) -> None:  # fmt: skip
  """Key block after key block; the gradient of q is added up in HBM, two blocks of it on their way at a time."""
  head, step = pl.program_id(0), pl.program_id(1)
  first, last = _edges(codes, count, step, _key)
  new = codes[step] & 2 != 0
  buffer = lax.rem(step, 2)

  def again(at: Array) -> Array:
    """The query block of step `at` is that of the step before."""
    return (at > 0) & (_query(codes[jnp.maximum(at, 0)]) == _query(codes[jnp.maximum(at - 1, 0)]))

  def load(at: Array) -> Any:
    half = lax.rem(at, 2)
    return pltpu.make_async_copy(dq_hbm.at[head, _query(codes[at])], dq_ref.at[half], semaphore.at[0, half])

  def store(at: Array) -> Any:
    half = lax.rem(at, 2)
    return pltpu.make_async_copy(dq_ref.at[half], dq_hbm.at[head, _query(codes[at])], semaphore.at[1, half])

  # The half of the buffer that this step takes is free, and its block is whole in HBM.
  pl.when((step >= 2) & ~again(step - 1))(lambda: store(step - 2).wait())
  pl.when(again(step))(lambda: store(step - 1).wait())
  pl.when(~new)(lambda: load(step).start())

  @pl.when(new)
  def _() -> None:
    dq_ref[buffer] = jnp.zeros(dq_ref.shape[1:], jnp.float32)

  @pl.when(first)
  def _() -> None:
    dk_total[...] = jnp.zeros_like(dk_total)
    dv_total[...] = jnp.zeros_like(dv_total)

  def body(masked: bool) -> None:
    q, gradient = q_ref[...], gradient_ref[...]
    size = tiles.masked_backward if masked else tiles.backward
    for start in range(0, tiles.keys, size):
      chunk = slice(start, start + size)
      k, v = k_ref[chunk, :], v_ref[chunk, :]
      if masked:
        bias = _bias(_columns(query_slots[...]), key_slots[:, chunk])
        scores = _masked_scores(q, k, bias, wide=tiles.wide, keys_first=True, precision=precision)
      else:
        scores = dot(k, q, (1, 1), precision)
      weights = jnp.exp2(scores - lse_ref[...])
      change = (weights * (dot(v, gradient, (1, 1), precision) - delta_ref[...])).astype(q.dtype)
      dv_total[chunk, :] += dot(weights.astype(q.dtype), gradient, (1, 0), precision)
      dk_total[chunk, :] += dot(change, q, (1, 0), precision)
      dq = dot(change, k, (0, 0), precision)
      if start == 0:
        pl.when(~new)(lambda: load(step).wait())
      dq_ref[buffer] += dq

  masked = codes[step] & 1 == 1
  pl.when(masked)(lambda: body(True))
  pl.when(~masked)(lambda: body(False))
  store(step).start()

  @pl.when(step == count[0] - 1)
  def _() -> None:
    store(step).wait()
    pl.when((step > 0) & ~again(step))(lambda: store(step - 1).wait())

  @pl.when(last)
  def _() -> None:
    dk_ref[...] = dk_total[...] * math.log(2)  # q carries log2(e)
    dv_ref[...] = dv_total[...]

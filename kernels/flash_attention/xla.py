"""The live pairs of a query block and a key block, one after the other: for CPU and GPU, and where Pallas doesn't run.

Letters: B rows, L slots, M keys, K key-value heads, H = K * r query heads, D head dimension; N query blocks of all rows
together, each of Q queries and R = r * Q rows, since the r heads of a group read the same keys; T key blocks of S keys.

A step is a few matmuls over all heads, of one pair; what it adds to, float32 sums as large as the operands, is written
in place. Only pairs in which the mask shows something are visited, so that time follows the mask; memory is O(L) and
the scores of one pair.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from qwenlong_jax.kernels.flash_attention.blocks import Slots, live
from qwenlong_jax.kernels.flash_attention.operands import RESULTS
from qwenlong_jax.kernels.flash_attention.reference import NOTHING, visible
from qwenlong_jax.kernels.precision import accumulator

# Slots in a block of queries and in one of keys, at most. On CPU smaller ones follow the mask closer, but 1,280
# slots of 4 heads of 16 take 1.2 times as long in blocks of 256, 1.4 in blocks of 128. A GPU (not measured) pays in
# each step for some ten launches and two waits for the host, tens of microseconds; with 32 heads of 128 a pair of 1024
# is 17 GFLOP in the forward pass and several times 134 MB of scores to move, hundreds of microseconds.
BLOCKS = {"default": 512, "gpu": 1024}
# A short row is cut into bands of queries instead, each of which reads the keys up to its own end in one step, without
# a loop inside: with the tiny model at 460 slots pairs of 128 take 1.4 times as long on CPU, and one of 460 1.3 times.
SHORT, BAND = 512, 160


@jax.custom_vjp
def attention(
  q: Float[Array, "B L H D"],
  k: Float[Array, "B L K D"],
  v: Float[Array, "B L K D"],
  segment: Int[Array, "B L"],
  position: Int[Array, "B L"],
) -> tuple[Float[Array, "B L H D"], Float[Array, "B L H"]]:
  """(out, log-sum-exp); memory O(L)."""
  return _attention_forward(q, k, v, segment, position)[0]


def _attention_forward(q: Array, k: Array, v: Array, segment: Array, position: Array) -> tuple:
  slots = Slots(segment, position)
  if q.shape[1] > SHORT:
    out, lse = forward(q, k, v, slots, slots)
  else:
    parts = [
      forward(q[:, mine], k[:, seen], v[:, seen], queries, keys, block=SHORT)
      for mine, seen, queries, keys in _bands(slots)
    ]
    out, lse = (jnp.concatenate(x, axis=1) for x in zip(*parts))
  out, lse = checkpoint_name((out.astype(q.dtype), lse), RESULTS)
  return (out, lse), (q, k, v, segment, position, out, lse)


def _attention_backward(residuals: tuple, gradients: tuple[Array, Array]) -> tuple:
  q, k, v, segment, position, out, lse = residuals
  slots, (gradient, lse_gradient) = Slots(segment, position), gradients
  delta = (gradient.astype(accumulator(q)) * out).sum(-1) - lse_gradient
  if q.shape[1] > SHORT:
    dq, dk, dv = backward(q, k, v, gradient, lse, delta, slots, slots)
  else:
    parts, dk, dv = [], *(jnp.zeros_like(x, accumulator(x)) for x in (k, v))
    for mine, seen, queries, keys in _bands(slots):
      g, l, d = gradient[:, mine], lse[:, mine], delta[:, mine]
      part, *more = backward(q[:, mine], k[:, seen], v[:, seen], g, l, d, queries, keys, block=SHORT)
      parts.append(part)
      dk, dv = (x.at[:, seen].add(y) for x, y in zip((dk, dv), more))
    dq = jnp.concatenate(parts, axis=1)
  return *(d.astype(x.dtype) for d, x in zip((dq, dk, dv), (q, k, v))), None, None


attention.defvjp(_attention_forward, _attention_backward)


def forward(
  q: Float[Array, "B L H D"],
  k: Float[Array, "B M K D"],
  v: Float[Array, "B M K D"],
  queries: Slots,
  keys: Slots,
  block: int | None = None,
) -> tuple[Float[Array, "B L H D"], Float[Array, "B L H"]]:
  """(out, log-sum-exp), both in the accumulator's type, over these M keys, in any order; see none: 0 and NOTHING.

  `block`: slots in a block, at most; None takes the backend's.
  """
  tiles = _Tiles(q, k, queries, keys, block)
  scaled, k, v = tiles.scaled(q), tiles.keys(k), tiles.keys(v)

  def step(carry: tuple, i: Array, j: Array, bias: Array) -> tuple:
    """Softmax so far: the highest score of each row, the sum of the weights, and of weights times values."""
    highest, sums, total = (_at(x, i) for x in carry)
    scores = _scores(_at(scaled, i), _at(k, j), bias)
    top = jnp.maximum(highest, scores.max(-1, keepdims=True))
    decay, weights = jnp.exp(highest - top), jnp.exp(scores - top)
    values = jnp.matmul(weights.astype(v.dtype), _at(v, j), preferred_element_type=total.dtype)
    found = top, sums * decay + weights.sum(-1, keepdims=True), total * decay + values
    return tuple(_put(x, i, y) for x, y in zip(carry, found))

  dtype, column = accumulator(q), (*scaled.shape[:3], 1)
  nothing = jnp.full_like(scaled, NOTHING, dtype, column), jnp.zeros_like(scaled, dtype, column)
  highest, sums, total = tiles.over_live_pairs(step, (*nothing, jnp.zeros_like(scaled, dtype)))
  sums = jnp.maximum(sums, jnp.finfo(dtype).tiny)  # of blocks in no pair: 0
  out, lse = tiles.untiled(total / sums), tiles.untiled(highest + jnp.log(sums))
  # Where a row sees nothing of a block, all its scores are NOTHING and the weights mean nothing until a real one comes.
  seen = (queries.segment >= 0)[..., None, None] & (tiles.untiled(highest) > NOTHING / 2)
  return jnp.where(seen, out, 0), jnp.where(seen, lse, NOTHING)[..., 0]


def backward(
  q: Float[Array, "B L H D"],
  k: Float[Array, "B M K D"],
  v: Float[Array, "B M K D"],
  gradient: Float[Array, "B L H D"],
  lse: Float[Array, "B L H"],
  delta: Float[Array, "B L H"],
  queries: Slots,
  keys: Slots,
  block: int | None = None,
) -> tuple[Float[Array, "B L H D"], Float[Array, "B M K D"], Float[Array, "B M K D"]]:
  """Gradients of q, k, v in the accumulator's type, of these M keys' share.

  `lse` is over all keys there are; `delta` is the sum of gradient times out, less the gradient of the lse.
  """
  tiles = _Tiles(q, k, queries, keys, block)
  seen = (queries.segment >= 0)[..., None] & (lse > NOTHING / 2)
  gradient, delta = jnp.where(seen[..., None], gradient, 0).astype(q.dtype), jnp.where(seen, delta, 0)
  lse = jnp.where(seen, lse, -NOTHING)  # such a row's weights are 0
  scaled, k, v = tiles.scaled(q), tiles.keys(k), tiles.keys(v)
  gradient, lse, delta = (tiles.queries(x) for x in (gradient, lse[..., None], delta[..., None]))
  multiply = functools.partial(jnp.matmul, preferred_element_type=accumulator(q))

  def step(carry: tuple, i: Array, j: Array, bias: Array) -> tuple:
    mine, theirs, g = _at(scaled, i), _at(k, j), _at(gradient, i)
    weights = jnp.exp(_scores(mine, theirs, bias) - _at(lse, i))
    change = weights * (multiply(g, _at(v, j).mT) - _at(delta, i))
    weights, change = weights.astype(v.dtype), change.astype(k.dtype)
    # Keys' gradients lie transposed, [T K D S]: on CPU a product with the transposed scores takes three times as long.
    found = (i, multiply(change, theirs)), (j, multiply(mine.mT, change)), (j, multiply(g.mT, weights))
    return tuple(_put(total, n, _at(total, n) + x) for total, (n, x) in zip(carry, found))

  nothing = tuple(jnp.zeros_like(x, accumulator(q)) for x in (scaled, k.mT, v.mT))
  dq, dk, dv = tiles.over_live_pairs(step, nothing)
  return tiles.untiled(dq) * q.shape[-1] ** -0.5, tiles.untiled_keys(dk.mT), tiles.untiled_keys(dv.mT)


class _Tiles:
  """Blocks of all rows, the ways there and back, and the loop over those pairs of them in which the mask shows any."""

  def __init__(
    self, q: Float[Array, "B L H D"], k: Float[Array, "B M K D"], queries: Slots, keys: Slots, block: int | None
  ):
    block = block or BLOCKS.get(jax.default_backend(), BLOCKS["default"])
    self.rows, self.length, self.key_length, self.heads = q.shape[0], q.shape[1], k.shape[1], k.shape[2]
    even = lambda length: -(-length // -(-length // block))  # noqa: E731
    self.size, self.key_size = even(self.length), even(self.key_length)
    self.query_slots = Slots(*(_cut(x, self.size, -1) for x in queries))
    self.key_slots = Slots(*(_cut(x, self.key_size, -1) for x in keys))

  def queries(self, x: Float[Array, "B L H X"]) -> Float[Array, "N K R X"]:
    x = _cut(x, self.size)
    n, _, h, d = x.shape
    return jnp.moveaxis(x.reshape(n, self.size, self.heads, h // self.heads, d), 1, 3).reshape(n, self.heads, -1, d)

  def scaled(self, q: Float[Array, "B L H D"]) -> Float[Array, "N K R D"]:
    """Rounded once: in bfloat16 the factor alone would lose a part in 500."""
    return self.queries((q.astype(accumulator(q)) * q.shape[-1] ** -0.5).astype(q.dtype))

  def untiled(self, x: Float[Array, "N K R X"]) -> Float[Array, "B L H X"]:
    n, _, _, d = x.shape
    x = jnp.moveaxis(x.reshape(n, self.heads, -1, self.size, d), 3, 1)
    return x.reshape(self.rows, -1, x.shape[2] * x.shape[3], d)[:, : self.length]

  def keys(self, x: Float[Array, "B M K D"]) -> Float[Array, "T K S D"]:
    return jnp.moveaxis(_cut(x, self.key_size), 2, 1)

  def untiled_keys(self, x: Float[Array, "T K S D"]) -> Float[Array, "B M K D"]:
    x = jnp.moveaxis(x, 1, 2)
    return x.reshape(self.rows, -1, *x.shape[2:])[:, : self.key_length]

  def live(self) -> tuple[Bool[Array, "B n t"], Bool[Array, "B n t"]]:
    """`blocks.live` of the n query blocks and t key blocks of each row."""
    queries, keys = (Slots(*(x.reshape(self.rows, -1) for x in slots)) for slots in (self.query_slots, self.key_slots))
    return live(queries, keys, self.size, self.key_size)

  def over_live_pairs(self, step: Callable, carry: Any) -> Any:
    """`step(carry, query block, key block, its bias)` for each, query block after query block."""
    some, every = self.live()
    _, n, t = some.shape
    # Not `blocks.pairs`, which packs its list for the scalar memory of a TPU and is bounded by it.
    listed, count = jnp.flatnonzero(some, size=some.size, fill_value=0), some.sum(dtype=jnp.int32)

    def body(number: Array | int, carry: Any) -> Any:
      pair = listed[number]
      i = pair // t
      j = i // n * t + pair % t
      return step(carry, i, j, _bias(_at_slots(self.query_slots, i), _at_slots(self.key_slots, j), every.ravel()[pair]))

    # One pair is no loop: on CPU a loop in a loop (over layers, over rows) is slower.
    return body(0, carry) if some.size == 1 else lax.fori_loop(0, count, body, carry)


def _bands(slots: Slots) -> Iterator[tuple[slice, slice, Slots, Slots]]:
  """(a band's queries, the keys up to its end, the slots of both): rows are in order, what is later is never seen."""
  length = slots.segment.shape[1]
  size = -(-length // -(-length // BAND))
  for start in range(0, length, size):
    end = min(start + size, length)
    mine, seen = slice(start, end), slice(end)
    queries, keys = (Slots(slots.segment[:, cut], slots.position[:, cut]) for cut in (mine, seen))
    yield mine, seen, queries, keys


def _cut(x: Array, size: int, fill: int = 0) -> Array:
  """[B L ...] as blocks of all rows, [B * blocks, size, ...]."""
  x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), *[(0, 0)] * (x.ndim - 2)), constant_values=fill)
  return x.reshape(-1, size, *x.shape[2:])


def _at(x: Array, i: Array) -> Array:
  return lax.dynamic_index_in_dim(x, i, keepdims=False)


def _at_slots(slots: Slots, i: Array) -> Slots:
  return Slots(*(_at(x, i) for x in slots))


def _put(x: Array, i: Array, block: Array) -> Array:
  return lax.dynamic_update_index_in_dim(x, block, i, 0)


def _bias(queries: Slots, keys: Slots, every: Bool[Array, ""]) -> Float[Array, "Q S"]:
  """0 where the query sees the key, else NOTHING; `every`: nothing is hidden.

  A conditional's result is an array in memory. Without one XLA's CPU compiler makes the mask again for every head, in
  each of the loops that read the scores: up to three times the time of the whole step.
  """
  shape = queries.segment.size, keys.segment.size
  nothing = jnp.zeros_like(queries.segment, jnp.float32, shape)
  sees = lambda: visible(*(x[None] for x in (*queries, *keys)))[0]  # noqa: E731
  return lax.cond(every, lambda: nothing, lambda: jnp.where(sees(), nothing, NOTHING))


def _scores(q: Float[Array, "K R D"], k: Float[Array, "K S D"], bias: Float[Array, "Q S"]) -> Float[Array, "K R S"]:
  """Of the keys that a query does not see: NOTHING."""
  scores = jnp.matmul(q, k.mT, preferred_element_type=accumulator(k))
  return (scores.reshape(len(k), -1, *bias.shape) + bias).reshape(scores.shape)

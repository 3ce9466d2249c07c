"""Row after row and block after block of queries, probabilities made again in the backward pass: for CPU and GPU, and
wherever Pallas does not run.

A tile's scores are [K, rep*q, L] (the query heads of one key-value head are one tall matrix), small enough for a cache.
The queries are cut into bands, each of which reads the keys up to its own end: what stands later is never seen.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.flash_attention.blocks import Slots
from qwenlong_jax.kernels.flash_attention.reference import NOTHING, visible
from qwenlong_jax.kernels.precision import accumulator

BLOCK = 512  # queries whose scores exist at a time
BAND = 128  # queries that share an end of their keys, at least; each band is compiled on its own, so that there are
BANDS = 8  # no more than these


@jax.custom_vjp
def attention(
  q: Float[Array, "B L H D"],
  k: Float[Array, "B L K D"],
  v: Float[Array, "B L K D"],
  segment: Int[Array, "B L"],
  position: Int[Array, "B L"],
) -> tuple[Float[Array, "B L H D"], Float[Array, "B L H"]]:
  """Memory O(L * BLOCK), never O(L^2)."""
  return _forward(q, k, v, segment, position)[0]


def _forward(q: Array, k: Array, v: Array, segment: Array, position: Array) -> tuple[tuple[Array, Array], tuple]:
  def row(args: tuple) -> Array:
    q, segment_q, position_q, k, v, segment, position = args
    block = lambda args: jnp.matmul(_weights(args, k, segment, position).astype(v.dtype), v)  # noqa: E731
    return _map(block, (q, *_blocks(segment_q, position_q)))

  def row_lse(args: tuple) -> Array:
    q, segment_q, position_q, k, _, segment, position = args
    block = lambda args: jax.nn.logsumexp(_scores(args, k, segment, position), axis=-1, keepdims=True)  # noqa: E731
    return _map(block, (q, *_blocks(segment_q, position_q)))

  bands = [*_bands(q, k, v, segment, position)]
  out = jnp.concatenate([_untile(_map(row, args), q[:, queries]) for queries, _, args in bands], axis=1)
  # Another loop, which the compiler drops where nobody reads the log-sum-exp: together they cost XLA's CPU compiler its
  # fusion, and three times the time.
  lse = jnp.concatenate([_untile(_map(row_lse, args), q[:, queries, :, :1]) for queries, _, args in bands], axis=1)
  # Only padding sees nothing (a slot sees itself); its weights are meaningless.
  seen = segment[:, :, None, None] >= 0
  out, lse = jnp.where(seen, out, 0), jnp.where(seen, lse, NOTHING)[..., 0]
  return (out, lse), (q, k, v, segment, position, out)


def _backward(residuals: tuple, gradients: tuple[Float[Array, "B L H D"], Float[Array, "B L H"]]) -> tuple:
  q, k, v, segment, position, out = residuals
  seen = segment[:, :, None, None] >= 0
  gradient, lse_gradient = jnp.where(seen, gradients[0], 0), jnp.where(seen, gradients[1][..., None], 0)

  def row(args: tuple) -> tuple[Array, Array, Array]:
    q, segment_q, position_q, g, delta, k, v, segment, position = args

    def block(totals: tuple[Array, Array], args: tuple) -> tuple[tuple[Array, Array], Array]:
      q, segment_q, position_q, g, delta = args
      weights = _weights((q, segment_q, position_q), k, segment, position)
      ds = weights * (jnp.matmul(g, v.mT, preferred_element_type=accumulator(k)) - delta)
      weights, ds = weights.astype(v.dtype), ds.astype(v.dtype)
      dk, dv = (
        total + jnp.matmul(x.mT, y, preferred_element_type=accumulator(k))
        for total, x, y in zip(totals, (ds, weights), (q, g))
      )
      return (dk, dv), jnp.matmul(ds, k)

    zeros = jnp.zeros_like(k, accumulator(k))
    (dk, dv), dq = _scan(block, (zeros, zeros), (q, *_blocks(segment_q, position_q), g, delta))
    return dq, dk, dv

  delta = (gradient.astype(accumulator(out)) * out).sum(-1, keepdims=True) - lse_gradient
  dq, dk, dv = [], *(jnp.zeros(jnp.moveaxis(x, 1, 2).shape, accumulator(x)) for x in (k, v))
  for queries, keys, args in _bands(q, k, v, segment, position, gradient, delta):
    tile, *totals = _map(row, args)
    dq.append(_untile(tile, q[:, queries]))
    dk, dv = (x.at[:, :, keys].add(y) for x, y in zip((dk, dv), totals))
  dq = jnp.concatenate(dq, axis=1) * q.shape[-1] ** -0.5
  dk, dv = (jnp.moveaxis(x, 1, 2).astype(k.dtype) for x in (dk, dv))
  return dq.astype(q.dtype), dk, dv, None, None


attention.defvjp(_forward, _backward)


def forward(
  q: Float[Array, "B L H D"], k: Float[Array, "B M K D"], v: Float[Array, "B M K D"], queries: Slots, keys: Slots
) -> tuple[Float[Array, "B L H D"], Float[Array, "B L H"]]:
  """(out, log-sum-exp), both in the accumulator's type, over these M keys, in any order; see none: 0 and NOTHING."""

  def row(args: tuple) -> tuple[Array, Array]:
    q, segment_q, position_q, k, v, segment, position = args

    def block(args: tuple) -> tuple[Array, Array]:
      def compute() -> tuple[Array, Array]:
        scores = _scores(args, k, segment, position)
        lse = jnp.maximum(jax.nn.logsumexp(scores, axis=-1, keepdims=True), NOTHING)
        weights = jnp.where(scores > NOTHING / 2, jnp.exp(scores - lse), 0).astype(v.dtype)
        return jnp.matmul(weights, v, preferred_element_type=lse.dtype), lse

      nothing = jax.eval_shape(compute)
      shows = visible(*(x[None] for x in (*args[1:], segment, position))).any()
      return jax.lax.cond(shows, compute, lambda: (_like(v, nothing[0], 0), _like(v, nothing[1], NOTHING)))

    return _map(block, (q, *_blocks(segment_q, position_q)))

  tiles = _query_tiles(q * q.shape[-1] ** -0.5, k.shape[2])
  out, lse = _map(row, (tiles, *queries, *(jnp.moveaxis(x, 1, 2) for x in (k, v)), *keys))
  lse = _untile(lse, q[..., :1])[..., 0]
  return _untile(out, q), jnp.where((queries.segment >= 0)[..., None] & (lse > NOTHING / 2), lse, NOTHING)


def backward(
  q: Float[Array, "B L H D"],
  k: Float[Array, "B M K D"],
  v: Float[Array, "B M K D"],
  gradient: Float[Array, "B L H D"],
  lse: Float[Array, "B L H"],
  delta: Float[Array, "B L H"],
  queries: Slots,
  keys: Slots,
) -> tuple[Float[Array, "B L H D"], Float[Array, "B M K D"], Float[Array, "B M K D"]]:
  """Gradients of q, k, v in the accumulator's type, of these M keys' share; `lse` is over all keys there are."""

  def row(args: tuple) -> tuple[Array, Array, Array]:
    q, segment_q, position_q, g, lse, delta, k, v, segment, position = args

    def block(totals: tuple[Array, Array], args: tuple) -> tuple[tuple[Array, Array], Array]:
      q, segment_q, position_q, g, lse, delta = args

      def compute() -> tuple[Array, Array, Array]:
        scores = _scores((q, segment_q, position_q), k, segment, position)
        weights = jnp.where(scores > NOTHING / 2, jnp.exp(scores - lse), 0)
        ds = weights * (jnp.matmul(g, v.mT, preferred_element_type=accumulator(k)) - delta)
        weights, ds = weights.astype(v.dtype), ds.astype(v.dtype)
        multiply = functools.partial(jnp.matmul, preferred_element_type=accumulator(k))
        return multiply(ds.mT, q), multiply(weights.mT, g), multiply(ds, k)

      shows = visible(*(x[None] for x in (segment_q, position_q, segment, position))).any()
      nothing = jax.eval_shape(compute)
      dk, dv, dq = jax.lax.cond(shows, compute, lambda: tuple(_like(v, x, 0) for x in nothing))
      return (totals[0] + dk, totals[1] + dv), dq

    zeros = _like(v, jax.ShapeDtypeStruct(k.shape, accumulator(k)), 0)
    (dk, dv), dq = _scan(block, (zeros, zeros), (q, *_blocks(segment_q, position_q), g, lse, delta))
    return dq, dk, dv

  seen = (queries.segment >= 0)[..., None] & (lse > NOTHING / 2)
  gradient, delta = jnp.where(seen[..., None], gradient, 0).astype(q.dtype), jnp.where(seen, delta, 0)
  heads = k.shape[2]
  cut = [_query_tiles(x, heads) for x in (gradient, lse[..., None], delta[..., None])]
  moved = [jnp.moveaxis(x, 1, 2) for x in (k, v)]
  dq, dk, dv = _map(row, (_query_tiles(q * q.shape[-1] ** -0.5, heads), *queries, *cut, *moved, *keys))
  return _untile(dq, q) * q.shape[-1] ** -0.5, jnp.moveaxis(dk, 1, 2), jnp.moveaxis(dv, 1, 2)


def _like(operand: Array, shape: jax.ShapeDtypeStruct, value: float) -> Array:
  """A constant array that, inside shard_map, varies over the axes that `operand` varies over."""
  return jnp.full_like(operand, value, dtype=shape.dtype, shape=shape.shape)


def _bands(q: Array, k: Array, v: Array, segment: Array, position: Array, *more: Array) -> Iterator[tuple]:
  """(queries, the keys that they may see, what a row of them takes) of each band; `more` is cut like q.

  A row takes: q scaled as [blocks K rep*q D], the queries' segments and positions, `more` in q's layout, k and v as
  [K L D], the keys' segments and positions.
  """
  length, heads = q.shape[1], k.shape[2]
  size = max(BAND, -(-length // BANDS))
  for start in range(0, length, size):
    queries, keys = slice(start, start + size), slice(min(start + size, length))
    scaled, *others = (_query_tiles(x[:, queries], heads) for x in (q * q.shape[-1] ** -0.5, *more))
    read = (jnp.moveaxis(x[:, keys], 1, 2) for x in (k, v))
    args = (scaled, segment[:, queries], position[:, queries], *others, *read, segment[:, keys], position[:, keys])
    yield queries, keys, args


def _query_tiles(x: Float[Array, "B L H D"], heads: int) -> Float[Array, "B blocks K M D"]:
  b, l, h, d = x.shape
  size = min(BLOCK, l)
  x = jnp.pad(x, ((0, 0), (0, -l % size), (0, 0), (0, 0))).reshape(b, -1, size, heads, h // heads, d)
  return jnp.moveaxis(x, 2, 4).reshape(b, -1, heads, h // heads * size, d)


def _untile(x: Float[Array, "B blocks K M D"], like: Float[Array, "B L H D"]) -> Float[Array, "B L H D"]:
  b, l, h, d = like.shape
  size, heads = min(BLOCK, l), x.shape[2]
  x = jnp.moveaxis(x.reshape(b, -1, heads, h // heads, size, d), 4, 2)
  return x.reshape(b, -1, h, d)[:, :l]


def _scan(f: Callable, carry: Any, xs: tuple) -> tuple[Any, Any]:
  """`jax.lax.scan`, but a single step is not a loop: on CPU a loop in a loop runs several times slower."""
  if len(xs[0]) > 1:
    return jax.lax.scan(f, carry, xs)
  carry, y = f(carry, jax.tree.map(lambda x: x[0], xs))
  return carry, jax.tree.map(lambda x: x[None], y)


def _map(f: Callable, xs: tuple) -> Any:
  return _scan(lambda carry, x: (carry, f(x)), None, xs)[1]


def _blocks(segment: Int[Array, "L"], position: Int[Array, "L"]) -> tuple[Array, Array]:
  """Segments and positions of the query blocks, [blocks q]."""
  size = min(BLOCK, len(segment))
  cut = lambda x: jnp.pad(x, (0, -len(x) % size), constant_values=-1).reshape(-1, size)  # noqa: E731
  return cut(segment), cut(position)


def _scores(queries: tuple, k: Float[Array, "K L D"], segment: Array, position: Array) -> Float[Array, "K M L"]:
  """Of the keys that a query does not see: NOTHING."""
  q, segment_q, position_q = queries
  bias = jnp.where(visible(segment_q[None], position_q[None], segment[None], position[None]), 0.0, NOTHING)
  scores = jnp.matmul(q, k.mT, preferred_element_type=accumulator(k))
  return (scores.reshape(len(k), -1, *bias.shape[1:]) + bias).reshape(scores.shape)


def _weights(queries: tuple, k: Float[Array, "K L D"], segment: Array, position: Array) -> Float[Array, "K M L"]:
  """Softmax over the keys that each query sees. Made again in the backward pass, its statistics too, which costs less
  than to keep them."""
  scores = _scores(queries, k, segment, position)
  weights = jnp.exp(scores - scores.max(-1)[..., None])
  return weights / weights.sum(-1)[..., None]

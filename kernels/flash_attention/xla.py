"""Row after row and block after block of queries, probabilities recomputed in the backward pass from their log-sum-exp:
for CPU and GPU, and wherever Pallas does not run.

A tile's scores are [K, rep*q, L] (the query heads of one key-value head are one tall matrix), small enough for a cache.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.flash_attention.reference import NEGATIVE, visible

BLOCK = 512  # queries whose scores exist at a time


@jax.custom_vjp
def attention(
  q: Float[Array, "B L H D"],
  k: Float[Array, "B L K D"],
  v: Float[Array, "B L K D"],
  segment: Int[Array, "B L"],
  position: Int[Array, "B L"],
) -> Float[Array, "B L H D"]:
  """Memory O(L * BLOCK), never O(L^2)."""
  return _forward(q, k, v, segment, position)[0]


def _forward(q: Array, k: Array, v: Array, segment: Array, position: Array) -> tuple[Array, tuple]:
  def row(args: tuple) -> tuple[Array, Array]:
    q, k, v, segment, position = args

    def block(args: tuple) -> tuple[Array, Array]:
      scores = _scores(args, k, segment, position)
      top = scores.max(-1, keepdims=True)
      weights = jnp.exp(scores - top)
      total = weights.sum(-1, keepdims=True)
      # Where nothing is seen all scores are NEGATIVE: such a slot gives 0, and its lse makes every weight 0 again.
      seen = top > NEGATIVE / 2
      out = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32) * (seen / total)
      return out.astype(v.dtype), jnp.where(seen, top + jnp.log(total), 0.0)

    return jax.lax.map(block, (q, *_blocks(segment, position, -1)))

  tiles = _tiles(q, k, v)
  out, lse = jax.lax.map(row, (*tiles, segment, position))
  return _untile(out, q), (*tiles, segment, position, out, lse)


def _backward(residuals: tuple, gradient: Float[Array, "B L H D"]) -> tuple:
  def row(args: tuple) -> tuple[Array, Array, Array]:
    q, k, v, segment, position, out, lse, g = args

    def block(totals: tuple[Array, Array], args: tuple) -> tuple[tuple[Array, Array], Array]:
      q, segment_q, position_q, out, lse, g = args
      weights = jnp.exp(_scores((q, segment_q, position_q), k, segment, position) - lse)
      delta = (g.astype(jnp.float32) * out).sum(-1, keepdims=True)
      ds = weights * (jnp.matmul(g, v.mT, preferred_element_type=jnp.float32) - delta)
      weights, ds = weights.astype(v.dtype), ds.astype(v.dtype)
      dk, dv = (
        total + jnp.matmul(x.mT, y, preferred_element_type=jnp.float32) for total, x, y in zip(totals, (ds, weights), (q, g))
      )
      return (dk, dv), jnp.matmul(ds, k)

    zeros = jnp.zeros_like(k, jnp.float32)
    (dk, dv), dq = jax.lax.scan(block, (zeros, zeros), (q, *_blocks(segment, position, -1), out, lse, g))
    return dq, dk.astype(k.dtype), dv.astype(v.dtype)

  *tiles, segment, position, out, lse = residuals
  heads, (b, l, h, d) = tiles[1].shape[1], gradient.shape
  g = _query_tiles(gradient, heads)
  dq, dk, dv = jax.lax.map(row, (*tiles, segment, position, out, lse, g))
  dq = _untile(dq, gradient) * d**-0.5
  return dq.astype(gradient.dtype), jnp.moveaxis(dk, 1, 2), jnp.moveaxis(dv, 1, 2), None, None


attention.defvjp(_forward, _backward)


def _tiles(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
  """q scaled as [B blocks K rep*q D]; k and v as [B K L D]."""
  return _query_tiles(q * q.shape[-1] ** -0.5, k.shape[2]), jnp.moveaxis(k, 1, 2), jnp.moveaxis(v, 1, 2)


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


def _blocks(segment: Int[Array, "L"], position: Int[Array, "L"], padding: int) -> tuple[Array, Array]:
  """Segments and positions of the query blocks, [blocks q]."""
  size = min(BLOCK, len(segment))
  cut = lambda x: jnp.pad(x, (0, -len(x) % size), constant_values=padding).reshape(-1, size)  # noqa: E731
  return cut(segment), cut(position)


def _scores(queries: tuple, k: Float[Array, "K L D"], segment: Array, position: Array) -> Float[Array, "K M L"]:
  q, segment_q, position_q = queries
  mask = visible(segment_q[None], position_q[None], segment[None], position[None])
  # The barrier keeps XLA from evaluating the mask again in each loop over the scores, for each head.
  bias = jax.lax.optimization_barrier(jnp.where(mask, 0.0, NEGATIVE))
  scores = jnp.matmul(q, k.mT, preferred_element_type=jnp.float32)
  return (scores.reshape(len(k), -1, *bias.shape[1:]) + bias).reshape(scores.shape)

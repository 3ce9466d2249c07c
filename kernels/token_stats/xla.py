"""Chunk after chunk of the vocabulary, with all tokens; the logits of a chunk are made again in the backward pass.

So the head's gradient is written column after column, each final, and only that of the hidden states is summed up.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.precision import accumulator
from qwenlong_jax.kernels.token_stats.parts import NOTHING, Part, merged

CHUNK_BYTES = 24 * 2**20  # of a chunk's logits (in the accumulator's type) or of their gradient (in hidden's)
TOKENS = 8192  # that share a chunk, so that it stays wide: its columns are what each sum of hidden's gradient pays for
LANES = 128  # a chunk begins at a multiple of these, where it is as wide

Carry = TypeVar("Carry")


@jax.custom_vjp
def columns(
  hidden: Float[Array, "T D"],
  head: Float[Array, "D V"],
  target: Int[Array, " T"],
  temperature: Float[Array, ""],
  limit: Int[Array, ""] | None,
) -> tuple[Float[Array, " T"], Part]:
  """As `reference.columns`; differentiable in `hidden` and `head`."""
  return _statistics(hidden, head, target, temperature, limit)


def _statistics(hidden: Array, head: Array, target: Array, temperature: Array, limit: Array | None) -> tuple:
  def tokens(start: Array, size: int, whole: tuple) -> tuple:
    few, wanted = (_cut(x, start, size, 0) for x in (hidden, target))

    def chunk(start: Array, width: int, stats: tuple[Array, Part]) -> tuple[Array, Part]:
      z, hit, _ = _logits(few, head, wanted, limit, start, width)
      highest = z.max(1)
      shifted = (z - highest[:, None]) / temperature
      weight = jnp.exp(shifted)
      total = weight.sum(1)
      part = Part(highest, jnp.log(total), jnp.log(total) - (weight * shifted).sum(1) / total)
      return stats[0] + jnp.where(hit, z, 0).sum(1), merged(stats[1], part, temperature)

    stats = jax.tree.map(lambda x: _cut(x, start, size, 0), whole)
    stats = _sweep(chunk, head.shape[1], _width(hidden, head, accumulator(hidden)), stats)
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, 0), whole, stats)

  constant = lambda value: jnp.full_like(hidden, value, accumulator(hidden), shape=target.shape)  # noqa: E731
  return _sweep(tokens, len(hidden), TOKENS, (constant(0), Part(constant(NOTHING), constant(0), constant(0))))


def _forward(*args: tuple) -> tuple[tuple, tuple]:
  hidden, head, *others = jax.tree.map(lambda x: x.value, args, is_leaf=lambda x: hasattr(x, "perturbed"))
  logit, part = columns(hidden, head, *others)
  if _width(hidden, head, accumulator(hidden)) < head.shape[1]:
    # The last chunk stands outside of the loop: its logits would be kept for the backward pass, or for the statistics
    # that may be taken later. The entropy stays out: what passes here is computed even if nobody reads it.
    hidden, logit, excess = jax.lax.optimization_barrier((hidden, logit, part.excess))
    part = part._replace(excess=excess)
  return (logit, part), ((hidden, head, *others), part)


def _backward(residuals: tuple, gradients: tuple) -> tuple:
  """With softmax p, a chunk's logits have the gradient: that of logit where the target is, and, over the temperature,
  p times that of the log-sum-exp minus p (ln p + H) times that of the entropy H."""
  (hidden, head, target, temperature, limit), whole = residuals
  to_logit, (_, to_lse, to_entropy) = gradients
  reads_entropy = not isinstance(to_entropy, SymbolicZero)
  to_logit, to_lse, to_entropy = (
    jnp.zeros_like(whole.excess) if isinstance(x, SymbolicZero) else x for x in (to_logit, to_lse, to_entropy)
  )
  of_token = target, *whole, to_logit, to_lse / temperature, to_entropy / temperature
  multiply = lambda x, y, axes: jax.lax.dot_general(  # noqa: E731
    x, y, ((axes[:1], axes[1:]), ((), ())), preferred_element_type=accumulator(hidden)
  )

  def chunk(start: Array, width: int, totals: tuple[Array, Array]) -> tuple[Array, Array]:
    def tokens(row: Array, size: int, totals: tuple[Array, Array]) -> tuple[Array, Array]:
      dhidden, dcolumns = totals
      few = _cut(hidden, row, size, 0)
      wanted, highest, excess, entropy, to_logit, to_lse, to_entropy = (
        _cut(x, row, size, 0)[:, None] for x in of_token
      )
      z, hit, weights = _logits(few, head, wanted[:, 0], limit, start, width)
      logp = (z - highest) / temperature - excess
      if reads_entropy:
        to_lse = to_lse - to_entropy * (logp + entropy)
      dz = (jnp.exp(logp) * to_lse + jnp.where(hit, to_logit, 0)).astype(hidden.dtype)
      rows = _cut(dhidden, row, size, 0) + multiply(dz, weights, (1, 1))
      return jax.lax.dynamic_update_slice_in_dim(dhidden, rows, row, 0), dcolumns + multiply(few, dz, (0, 0))

    dhidden, dhead = totals
    dcolumns = jnp.full_like(head, 0, accumulator(head), shape=(head.shape[0], width))
    dhidden, dcolumns = _sweep(tokens, len(hidden), TOKENS, (dhidden, dcolumns))
    dcolumns = dcolumns.astype(head.dtype)
    if head.shape[1] % LANES == 0:
      # As the TPU's compiler hands such an array on; left alone, on v6e it would write columns and copy the whole.
      dcolumns = with_layout_constraint(dcolumns, Layout((0, 1)))
    return dhidden, jax.lax.dynamic_update_slice_in_dim(dhead, dcolumns, start, 1)

  totals = jnp.zeros_like(hidden, accumulator(hidden)), jnp.zeros_like(head)
  dhidden, dhead = _sweep(chunk, head.shape[1], _width(hidden, head, hidden.dtype), totals)
  return dhidden.astype(hidden.dtype), dhead, None, None, None


columns.defvjp(_forward, _backward, symbolic_zeros=True)


def _logits(
  hidden: Array, head: Array, target: Array, limit: Array | None, start: Array, width: int
) -> tuple[Float[Array, "T C"], Array, Float[Array, "D C"]]:
  """A chunk's logits before the temperature, where they are the target's, and its columns of the head: those past
  `limit` are 0, as they may hold anything."""
  weights = _cut(head, start, width, 1)
  column = start + jnp.arange(width)
  if limit is not None:
    weights = jnp.where(column < limit, weights, 0)
  z = jnp.matmul(hidden, weights, preferred_element_type=accumulator(hidden))
  if limit is not None:
    z = jnp.where(column < limit, z, NOTHING)
  return z, column == target[:, None], weights


def _width(hidden: Array, head: Array, dtype: jnp.dtype) -> int:
  tokens = max(min(len(hidden), TOKENS), 1)
  width = max(CHUNK_BYTES // (tokens * dtype.itemsize), 1)
  return min(width - width % LANES if width > LANES else width, head.shape[1])


def _cut(x: Array, start: Array | int, size: int, axis: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(x, start, size, axis)


def _sweep(body: Callable[..., Carry], total: int, size: int, carry: Carry) -> Carry:
  """`carry` through body(start, size, carry) of each piece of `total`; the last one may be smaller."""
  pieces, rest = divmod(total, size)
  if pieces == 1:  # a loop of one step costs the compiler its fusions
    carry = body(0, size, carry)
  elif pieces:
    carry = jax.lax.fori_loop(0, pieces, lambda i, carry: body(i * size, size, carry), carry)
  return body(pieces * size, rest, carry) if rest else carry

"""Mixture of experts: softmax router, top-k, and the chosen experts' SwiGLU, dropless.

Letters: T tokens, D model width, E experts, K chosen per token, F expert width.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.grouped_matmul import by_group, collect, grouped_matmul, spread
from qwenlong_jax.kernels.neighbours import from_previous
from qwenlong_jax.kernels.precision import accumulator
from qwenlong_jax.models.presets import Qwen3Config

# Computing every expert for every token wastes E/K of the arithmetic but moves no rows: it wins while E is this small.
DENSE_UP_TO_EXPERTS = 8
# So few tokens that are two an expert or more read every expert's weights anyway, and fill no block of rows: decoding
# 8 responses with 4 of 16 experts takes 4.2 ms a step of a small model on CPU instead of 6.3.
FEW_TOKENS = 16
# Rows (tokens times chosen experts) from which on they are taken a piece after the other, and about how many a piece
# has. Qwen3-30B-A3B's backward pass holds some ten arrays of all rows, 20 GiB at 524,288. A piece costs a block of 128
# rows more for each of 128 experts, an eighth of these: so the 266,240 of a row of 256K and its responses stay whole.
PIECES_FROM, PIECE = 3 * 2**17, 2**17


@dataclass(frozen=True)
class Cut:
  """Inside `shard_map`, the mesh axis over which a feed-forward layer's experts or width are cut (None: not at all).

  The devices of the axis have the same rows each, or `own_rows`.
  """

  axis: str | None = None
  own_rows: bool = False


class MoE(nnx.Module):
  """The sparse feed-forward layer. Parameters: router [D E], gate and up [E D F], down [E F D]; where it is cut all of
  the router and this device's share of the experts."""

  def __init__(self, config: Qwen3Config, rngs: nnx.Rngs, param_dtype: jnp.dtype = jnp.float32):
    d, e, f = config.hidden_size, config.num_experts, config.moe_intermediate_size
    normal = lambda *shape: nnx.Param(  # noqa: E731
      jax.random.normal(rngs.params(), shape, param_dtype) * config.initializer_range
    )
    self.router, self.gate, self.up, self.down = normal(d, e), normal(e, d, f), normal(e, d, f), normal(e, f, d)
    self.chosen, self.renormalise = config.num_experts_per_tok, config.norm_topk_prob

  def __call__(
    self, x: Float[Array, "T D"], cut: Cut, experts: Int[Array, "T K"] | None = None
  ) -> tuple[Float[Array, "T D"], Int[Array, "T K"]]:
    """(the layer's output, the chosen experts); `experts` are chosen where they are given (`route`)."""
    weights, experts = route(x, self.router[...], self.chosen, self.renormalise, experts)
    matrices = [w[...].astype(x.dtype) for w in (self.gate, self.up, self.down)]
    if cut.axis is None:
      run = all_experts if dense(len(x), self.router.shape[1], self.chosen) else chosen_experts
    elif not cut.own_rows:
      run = functools.partial(expert_shares, axis=cut.axis)
    # What is less goes round: 6 bytes of each row, or 2 of each number of three matrices.
    elif len(x) < matrices[0].shape[0] * matrices[0].shape[2]:
      run = functools.partial(expert_parallel, axis=cut.axis)
    else:
      run = chosen_experts
      matrices = [jax.lax.all_gather(w, cut.axis, axis=0, tiled=True) for w in matrices]
    return run(x, weights, experts, *matrices), experts


def dense(tokens: int, experts: int, chosen: int) -> bool:
  """Whether all experts are computed for every token."""
  return experts <= DENSE_UP_TO_EXPERTS or (tokens <= FEW_TOKENS and tokens * chosen >= 2 * experts)


def route(
  x: Float[Array, "T D"],
  router: Float[Array, "D E"],
  chosen: int,
  renormalise: bool,
  experts: Int[Array, "T K"] | None = None,
) -> tuple[Float[Array, "T E"], Int[Array, "T K"]]:
  """(weight of every expert, 0 where it is not chosen; the chosen experts) of each token; softmax in float32.

  `experts`: those that were chosen elsewhere, of which only the weights are computed.
  """
  probs = jax.nn.softmax((x @ router.astype(x.dtype)).astype(accumulator(x)))
  if experts is None:
    _, experts = jax.lax.top_k(jax.lax.stop_gradient(probs), chosen)
  weights = probs * jax.nn.one_hot(experts, probs.shape[1]).sum(1)
  if renormalise:
    weights = weights / weights.sum(1, keepdims=True)
  return weights.astype(x.dtype), experts


def all_experts(
  x: Float[Array, "T D"],
  weights: Float[Array, "T E"],
  experts: Int[Array, "T K"],
  gate: Float[Array, "E D F"],
  up: Float[Array, "E D F"],
  down: Float[Array, "E F D"],
) -> Float[Array, "T D"]:
  """Every expert on every token, as three wide matmuls; `weights` silences those not chosen."""
  e, d, f = gate.shape
  wide = lambda w: jnp.moveaxis(w, 0, 1).reshape(d, e * f)  # noqa: E731
  hidden = jax.nn.silu(x @ wide(gate)) * (x @ wide(up)) * jnp.repeat(weights, f, axis=1)
  return hidden @ down.reshape(e * f, d)


def chosen_experts(
  x: Float[Array, "T D"],
  weights: Float[Array, "T E"],
  experts: Int[Array, "T K"],
  gate: Float[Array, "E D F"],
  up: Float[Array, "E D F"],
  down: Float[Array, "E F D"],
) -> Float[Array, "T D"]:
  """Rows sorted by expert, then one grouped matmul per projection: the arithmetic of the chosen experts only."""
  run = _in_pieces if experts.size >= PIECES_FROM else _apply
  return run(x, _of_chosen(weights, experts), experts, gate, up, down)


def _of_chosen(weights: Array, experts: Array) -> Array:
  """[T K] of [T E], as sums: a gather's transpose would be a scatter."""
  return (weights[:, None] * jax.nn.one_hot(experts, weights.shape[1], dtype=weights.dtype)).sum(2)


def _apply(x: Array, weights: Array, experts: Array, gate: Array, up: Array, down: Array) -> Array:
  """`weights` and `experts` are [T K]; an expert that is not in 0..E-1 adds nothing."""
  order, place, sizes = by_group(experts.reshape(-1), gate.shape[0])
  rows = spread(x, order, place, experts.shape[1])
  hidden = jax.nn.silu(grouped_matmul(rows, gate, sizes)) * grouped_matmul(rows, up, sizes)
  # Weighted here, where a row is F wide and not D.
  hidden = hidden * spread(weights.reshape(-1), order, place, 1)[:, None]
  return collect(grouped_matmul(hidden, down, sizes), order, place, experts.shape[1])


@jax.custom_vjp
def _in_pieces(x: Array, weights: Array, experts: Array, gate: Array, up: Array, down: Array) -> Array:
  """`_apply` to some tokens after the other; backward each piece is computed again, so that rows are never whole."""

  def step(piece: tuple[Array, Array, Array]) -> Array:
    few, their_weights, their_experts = piece
    return _apply(few, their_weights, their_experts, gate, up, down)

  out = jax.lax.map(step, _cut(x, weights, experts))
  return out.reshape(-1, x.shape[1])[: len(x)]


def _in_pieces_backward(operands: tuple, gradient: Array) -> tuple:
  x, weights, experts, *matrices = operands

  def step(totals: tuple, piece: tuple) -> tuple[tuple, tuple]:
    x, weights, experts, gradient = piece
    mine = lambda x, weights, *matrices: _apply(x, weights, experts, *matrices)  # noqa: E731
    dx, dweights, *found = jax.vjp(mine, x, weights, *matrices)[1](gradient)
    return tuple(a + b for a, b in zip(totals, found)), (dx, dweights)

  zeros = tuple(jnp.zeros_like(y, accumulator(y)) for y in matrices)
  totals, pieces = jax.lax.scan(step, zeros, _cut(x, weights, experts, gradient))
  dx, dweights = (y.reshape(-1, y.shape[2])[: len(x)] for y in pieces)
  # Together, or the totals wait, not yet cast, until they are sent.
  dx, *totals = jax.lax.optimization_barrier((dx, *(total.astype(y.dtype) for total, y in zip(totals, matrices))))
  return dx, dweights, None, *totals


_in_pieces.defvjp(lambda *operands: (_in_pieces(*operands), operands), _in_pieces_backward)


def _cut(x: Array, weights: Array, experts: Array, *others: Array) -> tuple:
  """[pieces tokens ...] of each, filled up with tokens that choose no expert."""
  pieces = max(experts.size // PIECE, 1)
  missing = ((0, -len(x) % pieces), (0, 0))
  padded = jnp.pad(x, missing), jnp.pad(weights, missing), jnp.pad(experts, missing, constant_values=-1)
  return tuple(y.reshape(pieces, -1, y.shape[1]) for y in (*padded, *(jnp.pad(y, missing) for y in others)))


def expert_shares(
  x: Float[Array, "T D"],
  weights: Float[Array, "T E"],
  experts: Int[Array, "T K"],
  gate: Float[Array, "L D F"],
  up: Float[Array, "L D F"],
  down: Float[Array, "L F D"],
  *,
  axis: str,
) -> Float[Array, "T D"]:
  """`chosen_experts` where every device of the mesh axis `axis` has the same few tokens and L of the E experts."""
  here = experts - jax.lax.axis_index(axis) * gate.shape[0]
  return added(_apply(x, _of_chosen(weights, experts), here, gate, up, down), axis)


def added(x: Float[Array, "T D"], axis: str) -> Float[Array, "T D"]:
  """The sum over the devices of a mesh axis, in the accumulator's precision."""
  return jax.lax.psum(x.astype(accumulator(x)), axis).astype(x.dtype)


def expert_parallel(
  x: Float[Array, "T D"],
  weights: Float[Array, "T E"],
  experts: Int[Array, "T K"],
  gate: Float[Array, "L D F"],
  up: Float[Array, "L D F"],
  down: Float[Array, "L F D"],
  *,
  axis: str,
) -> Float[Array, "T D"]:
  """`chosen_experts` where the mesh axis `axis` cuts tokens and experts: here are T and L, its size times L is E.

  Inside `shard_map`; device i has the experts i * L to (i + 1) * L - 1. Operands must vary over the same mesh axes.

  The experts stay; tokens go round the ring, and the sum of what the devices made of them follows one step behind. So
  nothing is dropped whatever the router does, in the memory of a few shards of tokens. An all-to-all moves each row to
  its experts' device only, but must have room there for the rows of all devices, or drop some.

  Raises:
    ValueError: `axis` is not one of the surrounding shard_map's, or its size times L is not E.
  """
  try:
    ring = jax.lax.axis_size(axis)
  except NameError as error:
    raise ValueError(f"{axis=} is no mesh axis here; call expert_parallel inside a shard_map that has it") from error
  if ring * gate.shape[0] != weights.shape[1]:
    raise ValueError(
      f"{gate.shape[0]} experts on each of the {ring} devices of {axis=} are not the {weights.shape[1]} of weights; "
      f"cut gate, up and down over {axis!r}, which must divide the number of experts"
    )
  return _round_the_ring(axis, x, _of_chosen(weights, experts), experts, gate, up, down)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _round_the_ring(axis: str, x: Array, weights: Array, experts: Array, gate: Array, up: Array, down: Array) -> Array:
  return _forward(axis, x, weights, experts, gate, up, down)[0]


def _forward(axis: str, *operands: Array) -> tuple[Array, tuple]:
  x, weights, experts, *matrices = operands

  def step(carry: tuple, _: None) -> tuple[tuple, None]:
    travelling, x, routing = carry
    arrived, *there = from_previous((travelling, x, routing), axis)
    mine = _apply(x, *_unpack(routing, x, axis, matrices), *matrices)
    return (arrived + mine, *there), None

  start = jnp.zeros_like(x, accumulator(x)), x, _pack(weights, experts)
  (travelled, *_), _ = jax.lax.scan(step, start, length=jax.lax.axis_size(axis))
  return from_previous(travelled, axis).astype(x.dtype), operands


def _backward(axis: str, operands: tuple, gradient: Array) -> tuple:
  x, weights, experts, *matrices = operands

  def step(carry: tuple, _: None) -> tuple[tuple, None]:
    travelling, totals, shard, routing = carry
    *arrived, there, routing_there = from_previous((*travelling, shard, routing), axis)
    weights, experts = _unpack(routing, x, axis, matrices)
    mine = lambda x, weights, *matrices: _apply(x, weights, experts, *matrices)  # noqa: E731
    found = jax.vjp(mine, shard[0], weights, *matrices)[1](shard[1])
    travelling, totals = (
      tuple(a + b for a, b in zip(old, new)) for old, new in ((arrived, found[:2]), (totals, found[2:]))
    )
    return (travelling, totals, there, routing_there), None

  zeros = lambda *arrays: tuple(jnp.zeros_like(y, accumulator(y)) for y in arrays)  # noqa: E731
  start = zeros(x, weights), zeros(*matrices), jnp.stack([x, gradient]), _pack(weights, experts)
  (travelled, totals, *_), _ = jax.lax.scan(step, start, length=jax.lax.axis_size(axis))
  dx, dweights = from_previous(travelled, axis)
  cast = [d.astype(y.dtype) for d, y in zip((dx, dweights, *totals), (x, weights, *matrices))]
  return *cast[:2], None, *cast[2:]


_round_the_ring.defvjp(_forward, _backward)


def _pack(weights: Array, experts: Array) -> Array:
  """One array, since the compiler hides so many permutes at a time and no more; float32 holds an expert's number."""
  return jnp.stack([weights.astype(accumulator(weights)), experts.astype(accumulator(weights))])


def _unpack(routing: Array, x: Array, axis: str, matrices: list[Array]) -> tuple[Array, Array]:
  """(weights, experts counted from this device's first)."""
  return routing[0].astype(x.dtype), routing[1].astype(jnp.int32) - jax.lax.axis_index(axis) * matrices[0].shape[0]

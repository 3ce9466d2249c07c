"""Mixture of experts: softmax router, top-k, and the chosen experts' SwiGLU, dropless.

Letters: T tokens, D model width, E experts, K chosen per token, F expert width.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.grouped_matmul import grouped_matmul
from qwenlong_jax.kernels.precision import accumulator
from qwenlong_jax.models.presets import Qwen3Config

# Computing every expert for every token wastes E/K of the arithmetic but moves no rows: it wins while E is this small.
DENSE_UP_TO_EXPERTS = 8


class MoE(nnx.Module):
  """The sparse feed-forward layer. Parameters: router [D E], gate and up [E D F], down [E F D]."""

  def __init__(self, config: Qwen3Config, rngs: nnx.Rngs, param_dtype: jnp.dtype = jnp.float32):
    d, e, f = config.hidden_size, config.num_experts, config.moe_intermediate_size
    normal = lambda *shape: nnx.Param(  # noqa: E731
      jax.random.normal(rngs.params(), shape, param_dtype) * config.initializer_range
    )
    self.router, self.gate, self.up, self.down = normal(d, e), normal(e, d, f), normal(e, d, f), normal(e, f, d)
    self.chosen, self.renormalise = config.num_experts_per_tok, config.norm_topk_prob

  def __call__(self, x: Float[Array, "T D"]) -> Float[Array, "T D"]:
    weights, experts = route(x, self.router[...], self.chosen, self.renormalise)
    run = all_experts if self.router.shape[1] <= DENSE_UP_TO_EXPERTS else chosen_experts
    return run(x, weights, experts, *(w[...].astype(x.dtype) for w in (self.gate, self.up, self.down)))


def route(
  x: Float[Array, "T D"], router: Float[Array, "D E"], chosen: int, renormalise: bool
) -> tuple[Float[Array, "T E"], Int[Array, "T K"]]:
  """(weight of every expert, 0 where it is not chosen; the chosen experts) of each token; softmax in float32."""
  probs = jax.nn.softmax((x @ router.astype(x.dtype)).astype(accumulator(x)))
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
  order, sizes = sort_by_expert(experts, gate.shape[0])
  token = order // experts.shape[1]
  rows = x[token]
  hidden = jax.nn.silu(grouped_matmul(rows, gate, sizes)) * grouped_matmul(rows, up, sizes)
  mine = jnp.take_along_axis(weights, experts, axis=1).reshape(-1)[order]
  return jnp.zeros_like(x).at[token].add(grouped_matmul(hidden, down, sizes) * mine[:, None])


def sort_by_expert(experts: Int[Array, "T K"], count: int) -> tuple[Int[Array, "T*K"], Int[Array, "E"]]:
  """(stable order of the assignments by expert, assignments per expert), by counting: a sort compiles for minutes."""
  one_hot = jax.nn.one_hot(experts.reshape(-1), count, dtype=jnp.int32)
  sizes = one_hot.sum(0)
  rank = ((jnp.cumsum(one_hot, axis=0) - 1) * one_hot).sum(1)
  place = (jnp.cumsum(sizes) - sizes)[experts.reshape(-1)] + rank
  return jnp.zeros_like(place).at[place].set(jnp.arange(place.shape[0])), sizes

"""Attention under the (segment, position) mask, without a [query, key] matrix of the whole length.

Letters: B rows, L slots, H query heads, K key-value heads (H a multiple of K), D head dimension.

Slot q sees slot k if neither is padding (segment -1), (segment_k == segment_q or segment_k == 0), and
position_k <= position_q. So plain causal attention, packed documents, padding, and a shared prefix (segment 0) with its
branches (segments 1..G) are all the same mask. Rows are in order: the mask lets no slot see a later one, so that an
implementation need not look there.
"""

from collections.abc import Callable

from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.choice import choose
from qwenlong_jax.kernels.flash_attention import pallas_tpu, reference, xla
from qwenlong_jax.kernels.flash_attention.operands import checked

IMPLEMENTATIONS: dict[str, Callable] = {
  "reference": reference.attention,
  "xla": xla.attention,
  "pallas_tpu": pallas_tpu.attention,
}


def flash_attention(
  q: Float[Array, "B L H D"],
  k: Float[Array, "B L K D"],
  v: Float[Array, "B L K D"],
  segment: Int[Array, "B L"],
  position: Int[Array, "B L"],
  *,
  implementation: str | None = None,
) -> Float[Array, "B L H D"]:
  """Softmax attention, scaled by D**-0.5, accumulated in float32; a slot that sees nothing gives 0.

  Slots must be in order (see above): what an implementation gives where the mask shows a later slot is undefined. What
  stands in padding must be finite: an implementation may multiply it by 0. For more rows take a larger B, not `vmap`.

  Raises:
    ValueError: the query heads do not divide into the key-value heads, shapes or types disagree or are not supported.
  """
  return flash_attention_with_lse(q, k, v, segment, position, implementation=implementation)[0]


def flash_attention_with_lse(
  q: Float[Array, "B L H D"],
  k: Float[Array, "B L K D"],
  v: Float[Array, "B L K D"],
  segment: Int[Array, "B L"],
  position: Int[Array, "B L"],
  *,
  implementation: str | None = None,
) -> tuple[Float[Array, "B L H D"], Float[Array, "B L H"]]:
  """(out, log-sum-exp of the scores in nats, float32) as `flash_attention`; both are differentiable.

  By the log-sum-exps attentions over parts of the keys are combined. That of a slot which sees nothing is -1e30.
  """
  slots = checked(q, k, v, segment, position)
  return choose(implementation, IMPLEMENTATIONS, {"default": "xla", "tpu": "pallas_tpu"})(q, k, v, *slots)

"""Attention over a sequence that is cut over a mesh axis, inside `shard_map`; masks as `flash_attention`'s.

Letters: B rows, L slots of this device, H query heads, K key-value heads, D head dimension.

Any slots may lie on any device: the mask knows segments and positions, not places. `to_ring` deals blocks round the
devices, which gives all of them about as much to do. What a device needs nothing from it doesn't compute.
"""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels import chip
from qwenlong_jax.kernels.choice import choose
from qwenlong_jax.kernels.flash_attention import pallas_tpu, xla
from qwenlong_jax.kernels.flash_attention.operands import checked
from qwenlong_jax.kernels.ring_attention import gathered, ring
from qwenlong_jax.kernels.ring_attention.layout import BLOCK, from_ring, to_ring

__all__ = ["BLOCK", "COMPILER_OPTIONS", "from_ring", "ring_attention", "ring_attention_with_lse", "to_ring"]

IMPLEMENTATIONS: dict[str, Callable] = {"ring": ring.attention, "gather": gathered.attention}
LOCAL = {"pallas_tpu": pallas_tpu, "xla": xla}
# With these the TPU compiler lets the transfers of the ring travel while a kernel computes; without, after it.
COMPILER_OPTIONS = {
  "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
  "xla_tpu_enable_all_gather_offload_tracing": "true",
}
GATHER_BELOW = 65536  # slots of all devices together; others' figures on v5p cross about there, ours are not measured


def ring_attention(
  q: Float[Array, "B L H D"],
  k: Float[Array, "B L K D"],
  v: Float[Array, "B L K D"],
  segment: Int[Array, "B L"],
  position: Int[Array, "B L"],
  *,
  axis: str,
  block: int = BLOCK,
  implementation: str | None = None,
  local: str | None = None,
) -> Float[Array, "B L H D"]:
  """`flash_attention` of this device's queries to the keys of all devices of the mesh axis `axis`.

  `block`: the slots were dealt in blocks of so many (`to_ring`): no tile of keys is longer, since what it then spans
  would have to be computed.
  `implementation`: "ring" or "gather"; None gathers up to 65,536 slots in all, and goes round above.
  Operands must vary over the same mesh axes: heads may be cut over another axis, q's and k's together.
  `local`: which of flash_attention's implementations computes on a device; None takes the backend's.

  Raises:
    ValueError: shapes or types disagree, an unknown name, `block` is no size, or `axis` is not one of the surrounding
      shard_map's.
  """
  return ring_attention_with_lse(
    q, k, v, segment, position, axis=axis, block=block, implementation=implementation, local=local
  )[0]


def ring_attention_with_lse(
  q: Float[Array, "B L H D"],
  k: Float[Array, "B L K D"],
  v: Float[Array, "B L K D"],
  segment: Int[Array, "B L"],
  position: Int[Array, "B L"],
  *,
  axis: str,
  block: int = BLOCK,
  implementation: str | None = None,
  local: str | None = None,
) -> tuple[Float[Array, "B L H D"], Float[Array, "B L H"]]:
  """(out, log-sum-exp in nats, float32); that of a slot which sees nothing is -1e30."""
  slots = checked(q, k, v, segment, position)
  try:
    size = jax.lax.axis_size(axis)
  except NameError as error:
    raise ValueError(f"{axis=} is no mesh axis here; call ring_attention inside a shard_map that has it") from error
  if not isinstance(block, int | np.integer) or block < 1:
    raise ValueError(f"{block=} must be a whole number from 1 on, the slots that were dealt together")
  run = choose(implementation, IMPLEMENTATIONS, {"default": "gather" if size * q.shape[1] <= GATHER_BELOW else "ring"})
  module = choose(local, LOCAL, {"default": "pallas_tpu" if chip.tpu() else "xla"}, "local")
  return run(q, k, v, *slots, axis, module, block)

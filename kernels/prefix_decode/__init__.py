"""One decode step of G branches over one shared prefix: the prefix keys and values are read once for all branches.

Letters: N layers, P prompts, G branches of each, H query heads, K key-value heads, D head dimension, S prefix and R
suffix slots.

The caches of all layers come whole, with the index of the layer to read: a slice of them, handed to a kernel, would be
a copy of that layer's cache in every step.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.choice import choose
from qwenlong_jax.kernels.prefix_decode import pallas_tpu, reference, xla

IMPLEMENTATIONS: dict[str, Callable] = {
  "reference": reference.prefix_decode,
  "xla": xla.prefix_decode,
  "pallas_tpu": pallas_tpu.prefix_decode,
}


def prefix_decode(
  q: Float[Array, "P G H D"],
  k: Float[Array, "P G K D"],
  v: Float[Array, "P G K D"],
  prefix: tuple[Float[Array, "N P K S D"], Float[Array, "N P K S D"]],
  prefix_length: Int[Array, " P"],
  suffix: tuple[Float[Array, "N P G K R D"], Float[Array, "N P G K R D"]],
  suffix_length: Int[Array, "P G"],
  layer: int | Int[Array, ""],
  *,
  axis: str | None = None,
  implementation: str | None = None,
) -> Float[Array, "P G H D"]:
  """Attention of each branch's new token (q, k, v) to its prefix, its own suffix, and itself, scaled by D**-0.5.

  Of the caches the first `prefix_length` and `suffix_length` slots of `layer` count; what stands in the others may be
  anything. The new k and v are not written: the caller writes all layers' at once, so that the cache is never copied.

  `axis`: inside `shard_map`, the slots are cut over this mesh axis, any slot on any device, but each on one only. The
  lengths are those of this device's slots; q, k and v are the same on every device of the axis, and so is the result.

  Raises:
    ValueError: shapes or types disagree or are not supported, a `layer` that is a plain number is not in the caches,
      `axis` is not one of the surrounding shard_map's, or `implementation` is unknown.
  """
  return prefix_decode_with_lse(
    q, k, v, prefix, prefix_length, suffix, suffix_length, layer, axis=axis, implementation=implementation
  )[0]


def prefix_decode_with_lse(
  q: Float[Array, "P G H D"],
  k: Float[Array, "P G K D"],
  v: Float[Array, "P G K D"],
  prefix: tuple[Float[Array, "N P K S D"], Float[Array, "N P K S D"]],
  prefix_length: Int[Array, " P"],
  suffix: tuple[Float[Array, "N P G K R D"], Float[Array, "N P G K R D"]],
  suffix_length: Int[Array, "P G"],
  layer: int | Int[Array, ""],
  *,
  axis: str | None = None,
  implementation: str | None = None,
) -> tuple[Float[Array, "P G H D"], Float[Array, "P G H"]]:
  """(out, log-sum-exp of the scores in nats, float32) as `prefix_decode`; the new token is among the scores."""
  number, layer = layer, jnp.asarray(layer)
  _check_shapes(q, k, v, prefix, prefix_length, suffix, suffix_length, layer)
  if isinstance(number, int | np.integer) and not 0 <= number < len(prefix[0]):
    raise ValueError(f"layer={number} is not one of the caches' {len(prefix[0])}, counted from 0")
  floating = [q, k, v, *prefix, *suffix]
  if len({x.dtype for x in floating}) > 1 or not jnp.issubdtype(q.dtype, jnp.floating):
    given = ", ".join(str(x.dtype) for x in floating)
    raise ValueError(f"types of q, k, v, prefix and suffix are {given}; cast them to one floating type")
  integers = prefix_length, suffix_length, layer
  if not all(jnp.issubdtype(x.dtype, jnp.signedinteger) for x in integers):
    raise ValueError(f"{prefix_length.dtype=}, {suffix_length.dtype=}, {layer.dtype=} must be signed integers")
  if axis is not None:
    try:
      jax.lax.axis_size(axis)
    except NameError as error:
      raise ValueError(f"{axis=} is no mesh axis here; call prefix_decode inside a shard_map that has it") from error
  run = choose(implementation, IMPLEMENTATIONS, {"default": "xla", "tpu": "pallas_tpu"})
  prefix_length, suffix_length, layer = (x.astype(jnp.int32) for x in integers)
  return run(q, k, v, prefix, prefix_length, suffix, suffix_length, layer, axis)


def _check_shapes(
  q: Array, k: Array, v: Array, prefix: tuple, prefix_length: Array, suffix: tuple, suffix_length: Array, layer: Array
) -> None:
  if q.ndim != 4 or k.shape != v.shape or k.shape[:2] != q.shape[:2] or k.shape[3:] != q.shape[3:]:
    raise ValueError(f"{q.shape=}, {k.shape=}, {v.shape=}; wanted [P G H D], [P G K D], [P G K D]")
  for name, cache, letters in (("prefix", prefix, "[N P K S D]"), ("suffix", suffix, "[N P G K R D]")):
    shapes = [jnp.shape(x) for x in cache]
    if not isinstance(cache, tuple) or [len(x) for x in shapes] != [letters.count(" ") + 1] * 2:
      raise ValueError(f"{name} of shapes {shapes}; wanted a pair, keys and values {letters}")
  (p, g, h, d), heads = q.shape, k.shape[2]
  (layers, *_, s, _), r = prefix[0].shape, suffix[0].shape[4]
  if 0 in (p, g, h, d, heads, layers, s, r) or h % heads:
    raise ValueError(
      f"{q.shape=}, {k.shape=}, prefix {prefix[0].shape}, suffix {suffix[0].shape}: every size must be at least 1, and "
      f"{h} query heads a multiple of {heads} key-value heads; a cache without tokens has a slot and length 0"
    )
  if any(x.shape != (layers, p, heads, s, d) for x in prefix):
    raise ValueError(f"prefix {[x.shape for x in prefix]}; wanted twice [N P K S D] = {(layers, p, heads, s, d)}")
  if any(x.shape != (layers, p, g, heads, r, d) for x in suffix):
    wanted = (layers, p, g, heads, r, d)
    raise ValueError(f"suffix {[x.shape for x in suffix]}; wanted twice [N P G K R D] = {wanted}")
  if (prefix_length.shape, suffix_length.shape, layer.shape) != ((p,), (p, g), ()):
    raise ValueError(
      f"{prefix_length.shape=}, {suffix_length.shape=}, {layer.shape=}; wanted {(p,)}, {(p, g)} and () = one index"
    )


def write_suffix(
  suffix: tuple[Float[Array, "N P G K R D"], Float[Array, "N P G K R D"]],
  new: tuple[Float[Array, "N P G K D"], Float[Array, "N P G K D"]],
  slot: Int[Array, ""] | Int[Array, " P"],
) -> tuple[Float[Array, "N P G K R D"], Float[Array, "N P G K R D"]]:
  """The suffix with the new token's keys and values of all layers in `slot`, one for all branches or one per prompt.

  Left to itself the TPU compiler lays the cache out for this write (along the branches, or slots innermost) and copies
  it for the kernel in every step. So it is told the layout, and writes through a view [N*P*G*K R D], or of as many
  dimensions as the slots differ over.

  Raises:
    ValueError: shapes disagree.
  """
  n, p, g, heads, r, d = suffix[0].shape
  if slot.shape not in ((), (p,)) or any(x.shape != (n, p, g, heads, d) for x in new):
    raise ValueError(f"{slot.shape=}, new {[x.shape for x in new]}; wanted () or {(p,)}, and {(n, p, g, heads, d)}")

  def written(cache: Array, new: Array) -> Array:
    if slot.ndim == 0:
      flat = jax.lax.dynamic_update_slice_in_dim(cache.reshape(-1, r, d), new.reshape(-1, 1, d), slot, axis=1)
      return with_layout_constraint(flat, Layout((0, 1, 2))).reshape(cache.shape)
    flat, rows = cache.reshape(n, p, g * heads, r, d), new.reshape(n, p, g * heads, 1, d)
    for i in range(p):
      flat = jax.lax.dynamic_update_slice(flat, rows[:, i : i + 1], (0, i, 0, slot[i], 0))
    return with_layout_constraint(flat, Layout((0, 1, 2, 3, 4))).reshape(cache.shape)

  return written(suffix[0], new[0]), written(suffix[1], new[1])


def write_prefix(
  prefix: tuple[Float[Array, "N P K S D"], Float[Array, "N P K S D"]],
  new: tuple[Float[Array, "N 1 K S D"], Float[Array, "N 1 K S D"]],
  row: Int[Array, ""],
) -> tuple[Float[Array, "N P K S D"], Float[Array, "N P K S D"]]:
  """The prefix with another one in the place of `row`, in the layout that the kernel reads, as `write_suffix`.

  Raises:
    ValueError: shapes disagree.
  """
  n, _, *rest = prefix[0].shape
  if row.shape != () or any(x.shape != (n, 1, *rest) for x in new):
    raise ValueError(f"{row.shape=}, new {[x.shape for x in new]}; wanted () and {(n, 1, *rest)}")

  def written(cache: Array, new: Array) -> Array:
    cache = jax.lax.dynamic_update_slice_in_dim(cache, new, row, axis=1)
    return with_layout_constraint(cache, Layout(tuple(range(cache.ndim))))

  return written(prefix[0], new[0]), written(prefix[1], new[1])

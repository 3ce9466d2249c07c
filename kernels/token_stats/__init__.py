"""Log-probability of given tokens and entropy of the whole distribution, from hidden states; logits are never whole.

Letters: T tokens, D model width, V vocabulary (this device's columns of it, where it is cut over a mesh axis).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.choice import choose
from qwenlong_jax.kernels.precision import accumulator
from qwenlong_jax.kernels.token_stats import reference, xla
from qwenlong_jax.kernels.token_stats.parts import across

IMPLEMENTATIONS: dict[str, Callable] = {"reference": reference.columns, "xla": xla.columns}


def token_stats(
  hidden: Float[Array, "T D"],
  head: Float[Array, "D V"],
  target: Int[Array, " T"],
  temperature: float | Float[Array, ""] = 1.0,
  *,
  axis: str | None = None,
  vocabulary: int | None = None,
  implementation: str | None = None,
) -> tuple[Float[Array, " T"], Float[Array, " T"]]:
  """(log-probability of `target`, entropy) of softmax(hidden @ head / temperature), in nats, float32 (float64 of
  float64). Differentiable in `hidden` and `head`; an entropy that nobody reads costs nothing.

  Args:
    hidden: as `head` of one floating type.
    target: one that is not in [0, vocabulary) names no token: log-probability -inf, without gradient.
    temperature: positive; a constant to the gradient. As an array it may change without another compilation.
    axis: the mesh axis of the surrounding shard_map over which the vocabulary is cut in order, device after device.
      All its devices hold the same `hidden` and `target` and get the same statistics. Gradients are those of jax's own
      collectives: taken outside of the shard_map, or inside it with check_vma=True, each device gets its columns' and
      that of `hidden` is whole (as is right for what doesn't vary over `axis`; a `hidden` that was cast to varying gets
      its device's share). Inside with check_vma=False, as ever there, what is differentiated is the sum of all devices'
      losses: divide the loss by the axis' size, and psum the gradient of `hidden` over it.
    vocabulary: only so many columns exist (of all devices', in order). Whatever the others hold, their probability
      and their gradient are 0.

  Raises:
    ValueError: shapes or types disagree, the temperature is not positive (checked where it is not traced) or not a
      scalar, `axis` is not one of the surrounding shard_map's, `vocabulary` is out of range, an unknown implementation.
  """
  _check(hidden, head, target, temperature)
  size = head.shape[1] * _axis_size(axis)
  vocabulary = size if vocabulary is None else vocabulary
  if not isinstance(vocabulary, int | np.integer) or not 0 < vocabulary <= size:
    raise ValueError(f"{vocabulary=} must be an integer in [1, {size}], the columns of head on all devices of {axis=}")
  run = choose(implementation, IMPLEMENTATIONS, {"default": "xla"})

  target = target.astype(jnp.promote_types(target.dtype, jnp.int32))  # a narrow type may not hold `vocabulary`
  exists = (target >= 0) & (target < vocabulary)
  first = 0 if axis is None else jax.lax.axis_index(axis) * head.shape[1]
  limit = None if vocabulary == size else jnp.asarray(vocabulary - first)
  temperature = jax.lax.stop_gradient(jnp.asarray(temperature, accumulator(hidden)))
  hidden, head, column = _varying(axis, hidden, head, target.astype(jnp.int32) - first)
  logit, part = run(hidden, head, column, temperature, limit)
  if axis is not None:
    logit, part = jax.lax.psum(logit, axis), across(part, temperature, axis)
  return jnp.where(exists, (logit - part.highest) / temperature - part.excess, -jnp.inf), part.entropy


def _check(hidden: Array, head: Array, target: Array, temperature: float | Array) -> None:
  if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[0] or target.shape != hidden.shape[:1]:
    raise ValueError(f"{hidden.shape=}, {head.shape=}, {target.shape=}; wanted [T D], [D V], [T]")
  if not head.shape[1]:
    raise ValueError(f"{head.shape=}; wanted at least one column")
  if hidden.dtype != head.dtype or not jnp.issubdtype(hidden.dtype, jnp.floating):
    raise ValueError(f"types disagree: {hidden.dtype=}, {head.dtype=}; cast them to one floating type")
  if not jnp.issubdtype(target.dtype, jnp.integer):
    raise ValueError(f"{target.dtype=} must be an integer type: targets are columns of head")
  if jnp.ndim(temperature):
    raise ValueError(f"{jnp.shape(temperature)=} must be (): one temperature for all tokens")
  if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:
    raise ValueError(f"{temperature=} must be positive")


def _axis_size(axis: str | None) -> int:
  if axis is None:
    return 1
  try:
    return jax.lax.axis_size(axis)
  except NameError as error:
    raise ValueError(f"{axis=} is no mesh axis here; call token_stats inside a shard_map that has it") from error


def _varying(axis: str | None, *arrays: Array) -> list[Array]:
  """The same arrays, all varying over `axis` and over what any of them varies over: a gradient then varies as its
  array does, and is summed where the array did not vary."""
  over = [jax.typeof(x).manual_axis_type.varying for x in arrays]
  axes = ({axis} - {None}).union(*over)
  return [jax.lax.pcast(x, tuple(axes - own), to="varying") for x, own in zip(arrays, over)]

"""Temperature and nucleus (top-p) sampling without sorting the vocabulary.

Letters: N rows, V vocabulary.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from qwenlong_jax.kernels.precision import accumulator

_ONE = 0x3F800000  # the bits of 1.0: between two floats in [0, 1] the order of the bits is the order of the numbers


@dataclass(frozen=True)
class Sampling:
  """How responses are drawn: at most `max_tokens` each, ended by one of `stop_ids`, slots after it hold `pad_id`.

  Entropies are taken at `entropy_temperature`; 0: at `temperature`, or at 1 where that is 0 too.
  """

  temperature: float
  top_p: float
  max_tokens: int
  stop_ids: tuple[int, ...]
  pad_id: int
  entropy_temperature: float = 0.0

  def __post_init__(self) -> None:
    if not 0 <= self.temperature < np.inf or not 0 < self.top_p <= 1 or self.max_tokens < 1:
      raise ValueError(
        f"sampling.temperature={self.temperature} must be >= 0, top_p={self.top_p} in (0, 1], "
        f"max_tokens={self.max_tokens} >= 1"
      )
    if not 0 <= self.entropy_temperature < np.inf:
      raise ValueError(f"entropy.temperature={self.entropy_temperature} must be >= 0 (0: the sampling temperature)")


def nucleus_threshold(probs: Float[Array, "N V"], top_p: float) -> Float[Array, "N 1"]:
  """The largest t with sum of the probabilities >= t at least `top_p` (exact: bisection over the float's bits).

  The nucleus is then {p >= t}: the smallest set of most probable tokens of that mass, with all ties of its last one.
  """

  def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = bounds  # mass({p >= low}) >= top_p > mass({p >= high})
    middle = low + (high - low) // 2
    enough = jnp.where(probs >= as_float(middle), probs, 0).sum(1, keepdims=True) >= top_p
    return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

  start = jnp.zeros((probs.shape[0], 1), jnp.int32)
  low, _ = jax.lax.fori_loop(0, 31, halve, (start, jnp.full_like(start, _ONE + 1)))
  return as_float(low)


def as_float(bits: Int[Array, "*n"]) -> Float[Array, "*n"]:
  """The float32 with these bits."""
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def sample(
  logits: Float[Array, "N V"],
  keys: Key[Array, " N"],
  temperature: float,
  top_p: float,
  entropy_temperature: float = 0.0,
) -> tuple[Int[Array, " N"], Float[Array, " N"], Float[Array, " N"]]:
  """(token, its log-probability, entropy) under the full softmax at `temperature`; top-p limits only what is drawn.

  `temperature` 0 takes the most probable token; its log-probability is then at temperature 1. The entropy is at
  `entropy_temperature` if that is not 0.
  """
  logits = logits.astype(accumulator(logits))
  logprobs = jax.nn.log_softmax(logits / (temperature or 1.0))
  if temperature == 0:
    token = logprobs.argmax(1)
  else:
    kept = logprobs
    if top_p < 1:
      probs = jnp.exp(logprobs)
      kept = jnp.where(probs >= nucleus_threshold(probs, top_p), logprobs, -jnp.inf)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:]))(keys)
    token = (kept + noise).argmax(1)
  spread = jax.nn.log_softmax(logits / entropy_temperature) if entropy_temperature else logprobs
  entropy = -(jnp.exp(spread) * spread).sum(1)
  return token, jnp.take_along_axis(logprobs, token[:, None], 1)[:, 0], entropy

"""Log-probability of given tokens and entropy of the whole distribution, from hidden states; logits are never whole.

Letters: T tokens, D model width, V vocabulary.
"""

from collections.abc import Callable

from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.choice import choose
from qwenlong_jax.kernels.token_stats import reference, xla

IMPLEMENTATIONS: dict[str, Callable] = {"reference": reference.token_stats, "xla": xla.token_stats}


def token_stats(
  hidden: Float[Array, "T D"],
  head: Float[Array, "D V"],
  target: Int[Array, "T"],
  temperature: float = 1.0,
  *,
  implementation: str | None = None,
) -> tuple[Float[Array, "T"], Float[Array, "T"]]:
  """(log-probability of `target`, entropy) of softmax(hidden @ head / temperature), float32, nats; differentiable.

  Raises:
    ValueError: the shapes disagree, or the temperature is not positive.
  """
  if hidden.ndim != 2 or head.ndim != 2 or hidden.shape[1] != head.shape[0] or target.shape != hidden.shape[:1]:
    raise ValueError(f"{hidden.shape=}, {head.shape=}, {target.shape=}; wanted [T D], [D V], [T]")
  if not temperature > 0:
    raise ValueError(f"{temperature=} must be positive")
  return choose(implementation, IMPLEMENTATIONS, {"default": "xla"})(hidden, head, target, temperature)

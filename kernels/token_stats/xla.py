"""Chunk after chunk of tokens; the logits of a chunk are recomputed in the backward pass."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from qwenlong_jax.kernels.precision import accumulator

CHUNK_BYTES = 64 * 2**20  # float32 logits that exist at a time


def token_stats(
  hidden: Float[Array, "T D"], head: Float[Array, "D V"], target: Int[Array, "T"], temperature: float = 1.0
) -> tuple[Float[Array, "T"], Float[Array, "T"]]:
  """H = -sum(p ln p), not lse - sum(p z): that one loses its digits where the logits z are large."""
  tokens, vocabulary = hidden.shape[0], head.shape[1]
  chunks = -(-tokens * vocabulary * 4 // CHUNK_BYTES)
  size = -(-tokens // chunks)

  def chunk(hidden: Array, target: Array) -> tuple[Array, Array]:
    logits = jnp.matmul(hidden, head, preferred_element_type=accumulator(hidden)) / temperature
    logprobs = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
    chosen = jnp.take_along_axis(logprobs, target[:, None], 1)[:, 0]
    return chosen, -(jnp.exp(logprobs) * logprobs).sum(1)

  if chunks == 1:
    return jax.checkpoint(chunk)(hidden, target)
  pad = chunks * size - tokens
  hidden = jnp.pad(hidden, ((0, pad), (0, 0))).reshape(chunks, size, -1)
  target = jnp.pad(target, (0, pad)).reshape(chunks, size)
  logprob, entropy = jax.lax.map(lambda args: jax.checkpoint(chunk)(*args), (hidden, target))
  return logprob.reshape(-1)[:tokens], entropy.reshape(-1)[:tokens]

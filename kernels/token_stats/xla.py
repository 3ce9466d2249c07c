"""Chunk after chunk of tokens; the logits of a chunk are recomputed in the backward pass."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

CHUNK_BYTES = 64 * 2**20  # float32 logits that exist at a time


def token_stats(
  hidden: Float[Array, "T D"], head: Float[Array, "D V"], target: Int[Array, "T"], temperature: float = 1.0
) -> tuple[Float[Array, "T"], Float[Array, "T"]]:
  """H = lse - sum(p z), both from one pass over the chunk's logits z."""
  tokens, vocabulary = hidden.shape[0], head.shape[1]
  chunks = -(-tokens * vocabulary * 4 // CHUNK_BYTES)
  size = -(-tokens // chunks)

  def chunk(hidden: Array, target: Array) -> tuple[Array, Array]:
    logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32) / temperature
    lse = jax.nn.logsumexp(logits, axis=1)
    label = jnp.take_along_axis(logits, target[:, None], 1)[:, 0]
    return label - lse, lse - (jnp.exp(logits - lse[:, None]) * logits).sum(1)

  if chunks == 1:
    return jax.checkpoint(chunk)(hidden, target)
  pad = chunks * size - tokens
  hidden = jnp.pad(hidden, ((0, pad), (0, 0))).reshape(chunks, size, -1)
  target = jnp.pad(target, (0, pad)).reshape(chunks, size)
  logprob, entropy = jax.lax.map(lambda args: jax.checkpoint(chunk)(*args), (hidden, target))
  return logprob.reshape(-1)[:tokens], entropy.reshape(-1)[:tokens]

"""A head start for small models trained from nothing: first-layer heads that look at the tokens just before.

Looking something up in the context takes two layers: heads that copy each token's predecessors beside it, and a later
head that searches for the current tokens among those copies. A random 2-layer model finds the first half late; here it
is given, the second half is learned. Published checkpoints need none of this.
"""

import jax.numpy as jnp
import numpy as np

from qwenlong_jax.models import rotary
from qwenlong_jax.models.qwen3 import Qwen3

SHARPNESS = 2.5  # of the first layer's query and key norms: these heads' scores reach sqrt(head_dim) * SHARPNESS**2


def look_back(model: Qwen3) -> None:
  """Sets the first layer's query heads n = 0, 1, ... to attend n + 1 tokens back, in place.

  One embedding dimension is made the same for all tokens. The queries and keys read mostly that dimension, and the
  query is turned back by the distance, so that after rotation their product is largest there.
  """
  config = model.config
  size = config.head_dim
  inverse, _ = rotary.frequencies(size, config.rope_theta, config.rope_scaling)
  # Fast frequencies tell neighbours apart, the slower ones make the distance the only maximum.
  falling = np.where(np.arange(size // 2) < size // 4, 1.0, 0.25)
  angle = np.arange(1, config.num_attention_heads + 1)[:, None] * inverse
  keys = np.tile(np.concatenate([falling, np.zeros(size // 2)]), config.num_key_value_heads)
  queries = np.concatenate([falling * np.cos(angle), -falling * np.sin(angle)], axis=1).reshape(-1)

  model.embedding[...] = model.embedding[...].at[:, 0].set(4 * config.initializer_range)
  attention = model.runs[0].attention
  for weight, vector in ((attention.q, queries), (attention.k, keys)):
    weight[...] = weight[...].at[0].multiply(0.1).at[0, 0].set(jnp.asarray(vector, weight.dtype))
  for norm in (attention.q_norm, attention.k_norm):
    norm[...] = norm[...].at[0].multiply(SHARPNESS)

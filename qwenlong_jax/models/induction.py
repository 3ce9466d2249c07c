"""A head start for small models trained from nothing: first-layer heads that look at the previous token.

Looking something up in the context takes two layers: one head that copies each token's predecessor beside it, and a later
head that searches for the current token among those copies. A random 2-layer model finds the first half late; here it is
given, the second half is learned. Published checkpoints need none of this.
"""

import jax.numpy as jnp
import numpy as np

from qwenlong_jax.models import rotary
from qwenlong_jax.models.qwen3 import Qwen3

SHARPNESS = 2.5  # of the first layer's query and key norms: these heads' scores reach sqrt(head_dim) * SHARPNESS**2


def look_back(model: Qwen3) -> None:
  """Sets the query heads of the first layer's key-value head 0 to attend to the previous token, in place.

  One embedding dimension is made the same for all tokens. These queries and keys read mostly that dimension, and the
  query is turned back by one position, so that after rotation their product is largest at distance one.
  """
  config = model.config
  size, queries = config.head_dim, config.num_attention_heads // config.num_key_value_heads
  inverse, _ = rotary.frequencies(size, config.rope_theta, config.rope_scaling)
  # Fast frequencies tell neighbours apart, the slower ones make distance one the only maximum.
  falling = np.where(np.arange(size // 2) < size // 4, 1.0, 0.25)
  key = np.concatenate([falling, np.zeros(size // 2)])
  query = np.concatenate([falling * np.cos(inverse), -falling * np.sin(inverse)])

  model.embedding[...] = model.embedding[...].at[:, 0].set(4 * config.initializer_range)
  attention = model.runs[0].attention
  for weight, vector in ((attention.q, np.tile(query, queries)), (attention.k, key)):
    heads = weight[...].at[0, :, : len(vector)].multiply(0.1)
    weight[...] = heads.at[0, 0, : len(vector)].set(jnp.asarray(vector, heads.dtype))
  for norm in (attention.q_norm, attention.k_norm):
    norm[...] = norm[...].at[0].multiply(SHARPNESS)

"""From the layout in which the learner keeps parameters to the one in which the sampler reads them."""

from functools import lru_cache

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from qwenlong_jax.parallelism import rules


@lru_cache
def _gather(mesh: Mesh) -> jax.stages.Wrapped:
  return jax.jit(lambda params: params, out_shardings=rules.replicated(mesh))


def for_decoding(params: PyTree, mesh: Mesh) -> PyTree:
  """The parameters whole on every device, gathered once per step instead of once per token."""
  return params if mesh.size == 1 else _gather(mesh)(params)

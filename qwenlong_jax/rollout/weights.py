"""From the layout in which the learner keeps parameters to the one in which the sampler reads them."""

from functools import lru_cache

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from qwenlong_jax.parallelism import rules


def for_decoding(params: PyTree, mesh: Mesh, dtype: jnp.dtype) -> PyTree:
  """The parameters in `dtype`, cut by `rules.decoding`: moved in one program per step instead of once per token."""
  same = all(x.dtype == dtype for x in jax.tree.leaves(params))
  return params if same and mesh.size == 1 else _program(params, mesh, dtype)(params)


def lower(params: PyTree, mesh: Mesh, dtype: jnp.dtype) -> jax.stages.Lowered:
  """What `for_decoding` runs, from shapes and shardings of the parameters."""
  return _program(params, mesh, dtype).lower(params)


def _program(params: PyTree, mesh: Mesh, dtype: jnp.dtype) -> jax.stages.Wrapped:
  specs, structure = jax.tree.flatten(rules.decoding(params, mesh))
  return _compiled_once(structure, tuple(NamedSharding(mesh, spec) for spec in specs), jnp.dtype(dtype))


@lru_cache
def _compiled_once(
  structure: jax.tree_util.PyTreeDef, shardings: tuple[NamedSharding, ...], dtype: jnp.dtype
) -> jax.stages.Wrapped:
  def relaid(params: PyTree) -> PyTree:
    return jax.tree.map(lambda x: x.astype(dtype), params)

  return jax.jit(relaid, out_shardings=jax.tree.unflatten(structure, shardings))

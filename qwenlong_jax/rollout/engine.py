"""The sampler: each prompt prefilled once, its G responses decoded over that prefix, in one compiled program.

Prompts are cut over the mesh axis "data"; over "ring" the slots of the caches, experts and widths (`rules.decoding`).

Letters: P prompts, G responses to each, S prompt slots, R response slots.
"""

from dataclasses import fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key, PyTree

from qwenlong_jax.kernels import grouped_matmul, ring_attention
from qwenlong_jax.parallelism import rules
from qwenlong_jax.rollout.lanes import Lanes
from qwenlong_jax.rollout.sampling import Sampling
from qwenlong_jax.types import Prompts, Rollout


class Engine:
  """Samples from a Qwen3 (given as its NNX graph) over a mesh."""

  def __init__(
    self,
    graph: nnx.GraphDef,
    mesh: Mesh,
    *,
    lanes: int = 0,
    record: bool = False,
    ring_block: int = ring_attention.BLOCK,
  ):
    """`lanes`: groups that a ring (or device, where mesh.ring is 1) decodes at once; the next takes the place of one
    that has ended. 0: all of its prompts. `record`: the rollout says which experts were chosen, in two bytes for each
    token, layer and expert. Blocks of at most `ring_block` slots are dealt round the ring."""
    if lanes < 0:
      raise ValueError(f"{lanes=} groups at once must be at least 1, or 0 for all of a ring's prompts")
    self.graph, self.mesh, self.lanes, self.record, self.ring_block = graph, mesh, lanes, record, ring_block
    tpu = mesh.devices.flat[0].platform == "tpu"
    options = ring_attention.COMPILER_OPTIONS | grouped_matmul.COMPILER_OPTIONS if tpu else None
    self._run = jax.jit(self._generate, static_argnames=("group", "sampling"), compiler_options=options)

  def generate(
    self, params: PyTree, prompts: Prompts, key: Key[Array, ""] | Key[Array, "P G"], *, group: int, sampling: Sampling
  ) -> Rollout:
    """G responses to each prompt. What sample i draws depends on `key` and i alone, not on devices or lanes; where each
    response has a key of its own, on that alone.

    `params` as from `weights.for_decoding`.

    Raises:
      ValueError: the prompts do not divide over the data axis, one is empty or longer than its slots, or there are
        more or fewer keys than responses.
    """
    devices = self.mesh.shape["data"]
    p, s = prompts.tokens.shape
    if p % devices:
      raise ValueError(f"{p} prompts do not divide over mesh.data={devices}; change batch.prompts or mesh.data")
    if key.ndim and key.shape != (p, group):
      raise ValueError(f"keys of shape {key.shape} for {p} prompts and {group} responses each; give one each, or one")
    length = np.asarray(prompts.length)
    if (wrong := np.flatnonzero((length < 1) | (length > s))).size:
      raise ValueError(f"prompt {wrong[0]} has {length[wrong[0]]} tokens; its slots take 1 to {s}")
    return self._run(params, prompts, key, group=group, sampling=sampling)

  def lower(self, params: PyTree, prompts: tuple[int, int], *, group: int, sampling: Sampling) -> jax.stages.Lowered:
    """What `generate` runs for so many prompts in so many slots, from shapes of the parameters (of the master too)."""

    def placed(shape: tuple[int, ...], dtype: jnp.dtype, spec: PartitionSpec) -> Any:
      return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, spec))

    dtype = nnx.merge(self.graph, params).dtype
    weights = jax.tree.map(lambda x, spec: placed(x.shape, dtype, spec), params, rules.decoding(params, self.mesh))
    rows, key = PartitionSpec("data"), placed((), jax.random.key(0).dtype, PartitionSpec())
    questions = Prompts(placed(prompts, jnp.int32, rows), placed(prompts[:1], jnp.int32, rows))
    return self._run.lower(weights, questions, key, group=group, sampling=sampling)

  def _generate(
    self, params: PyTree, prompts: Prompts, key: Key[Array, "..."], group: int, sampling: Sampling
  ) -> Rollout:
    p = prompts.tokens.shape[0]
    keys = key if key.ndim else jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(p * group)).reshape(p, group)
    rows, whole = PartitionSpec("data"), PartitionSpec()
    specs: dict[str, Any] = {field.name: rows for field in fields(Rollout)}
    specs |= {"prefill_tokens": whole, "decode_steps": whole, "prompt_experts": PartitionSpec("data", "ring")}
    out = Rollout(**specs if self.record else specs | {"prompt_experts": None, "experts": None})
    # Not checked: results of a ring are the same on its devices, which the types cannot know of a loop's state.
    rollout = jax.shard_map(
      partial(self._local, sampling=sampling),
      mesh=self.mesh,
      in_specs=(rules.decoding(params, self.mesh), rows, rows),
      out_specs=out,
      check_vma=False,
    )(params, prompts, keys)
    ring, slots = self.mesh.shape["ring"], prompts.tokens.shape[1]
    if ring == 1 or not self.record:
      return rollout
    block = dealt_block(slots, ring, self.ring_block)
    experts = ring_attention.from_ring(jnp.asarray(rollout.prompt_experts), ring, block)
    return replace(rollout, prompt_experts=jax.lax.with_sharding_constraint(experts[:, :slots], rules.rows(self.mesh)))

  def _local(self, params: PyTree, prompts: Prompts, keys: Key[Array, "P G"], sampling: Sampling) -> Rollout:
    """One device's share."""
    p, s = prompts.tokens.shape
    ring = self.mesh.shape["ring"]
    lanes = Lanes(
      model=nnx.merge(self.graph, params),
      prompts=prompts,
      keys=keys,
      sampling=sampling,
      count=min(self.lanes or p, p),
      axis="ring" if ring > 1 else None,
      block=dealt_block(s, ring, self.ring_block),
      record=self.record,
    )
    state = lanes.run()
    ended = jnp.isin(state.tokens, jnp.array(sampling.stop_ids, jnp.int32))
    # A stop id can equal the pad id: the length is where the first stop stands.
    stopped = ended.any(2)
    return Rollout(
      prompts=prompts,
      tokens=state.tokens,
      length=jnp.where(stopped, ended.argmax(2) + 1, sampling.max_tokens),
      logprob=state.logprob,
      entropy=state.entropy,
      stopped=stopped,
      prefill_tokens=jax.lax.psum(jnp.int32(prompts.tokens.size), "data"),
      decode_steps=jax.lax.pmax(state.steps + 1, "data"),
      prompt_experts=state.prompt_experts,
      experts=state.experts,
    )


def dealt_block(slots: int, ring: int, most: int) -> int:
  """Slots of the blocks that are dealt round the ring: as many as a short prompt needs, in eights, `most` of a long."""
  return min(most, -(-slots // (8 * ring)) * 8)

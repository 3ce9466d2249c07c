"""The sampler: each prompt prefilled once, its G responses decoded over that prefix, in one compiled program.

Letters: P prompts, G responses to each, S prompt slots, R response slots, V vocabulary.
"""

from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from qwenlong_jax.kernels import grouped_matmul
from qwenlong_jax.kernels.prefix_decode import write_suffix
from qwenlong_jax.rollout.sampling import sample
from qwenlong_jax.types import Prompts, Rollout


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


class Decoding(NamedTuple):
  """The state of the decode loop."""

  step: Int[Array, ""]
  last: Int[Array, "P G"]
  stopped: Bool[Array, "P G"]
  tokens: Int[Array, "P G R"]
  logprob: Float[Array, "P G R"]
  entropy: Float[Array, "P G R"]
  keys: Float[Array, "layers P G K R A"]
  values: Float[Array, "layers P G K R A"]


class Engine:
  """Samples from a Qwen3 (given as its NNX graph) over the data axis of a mesh."""

  def __init__(self, graph: nnx.GraphDef, mesh: Mesh):
    self.graph, self.mesh = graph, mesh
    options = grouped_matmul.COMPILER_OPTIONS if mesh.devices.flat[0].platform == "tpu" else None
    self._run = jax.jit(self._generate, static_argnames=("group", "sampling"), compiler_options=options)

  def generate(
    self, params: PyTree, prompts: Prompts, key: Key[Array, ""], *, group: int, sampling: Sampling
  ) -> Rollout:
    """G responses to each prompt. What sample i draws depends on `key` and i alone, not on the number of devices.

    Raises:
      ValueError: the prompts do not divide over the data axis, or one is empty or longer than its slots.
    """
    devices = self.mesh.shape["data"]
    p, s = prompts.tokens.shape
    if p % devices:
      raise ValueError(f"{p} prompts do not divide over mesh.data={devices}; change batch.prompts or mesh.data")
    length = np.asarray(prompts.length)
    if (wrong := np.flatnonzero((length < 1) | (length > s))).size:
      raise ValueError(f"prompt {wrong[0]} has {length[wrong[0]]} tokens; its slots take 1 to {s}")
    return self._run(params, prompts, key, group=group, sampling=sampling)

  def _generate(self, params: PyTree, prompts: Prompts, key: Key[Array, ""], group: int, sampling: Sampling) -> Rollout:
    p = prompts.tokens.shape[0]
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(p * group)).reshape(p, group)
    rows, whole = PartitionSpec("data"), PartitionSpec()
    specs: dict[str, Any] = {field.name: rows for field in fields(Rollout)}
    out = Rollout(**specs | {"prefill_tokens": whole, "decode_steps": whole})
    local = partial(self._local, group=group, sampling=sampling)
    return jax.shard_map(local, mesh=self.mesh, in_specs=(whole, rows, rows), out_specs=out, check_vma=False)(
      params, prompts, keys
    )

  def _local(
    self, params: PyTree, prompts: Prompts, keys: Key[Array, "P G"], group: int, sampling: Sampling
  ) -> Rollout:
    """One device's share."""
    model = nnx.merge(self.graph, params)
    p, s = prompts.tokens.shape
    r = sampling.max_tokens
    write = jax.lax.dynamic_update_slice_in_dim
    slots = jnp.broadcast_to(jnp.arange(s), (p, s))
    hidden, prefix = model.prefill(prompts.tokens, slots, jnp.where(slots < prompts.length[:, None], 1, -1))
    last = jnp.take_along_axis(hidden, (prompts.length - 1)[:, None, None], 1)  # [P 1 D]
    logits = jnp.broadcast_to(model.logits(last), (p, group, model.config.vocab_size))

    def draw(logits: Float[Array, "P G V"], state: Decoding) -> Decoding:
      """Samples token number `step` of every response that still runs."""
      step_keys = jax.vmap(lambda k: jax.random.fold_in(k, state.step))(keys.reshape(-1))
      token, logprob, entropy = (
        x.reshape(p, group)
        for x in sample(
          logits.reshape(p * group, -1),
          step_keys,
          sampling.temperature,
          sampling.top_p,
          sampling.entropy_temperature,
        )
      )
      token = jnp.where(state.stopped, sampling.pad_id, token).astype(jnp.int32)
      logprob, entropy = (jnp.where(state.stopped, 0.0, x) for x in (logprob, entropy))
      return state._replace(
        step=state.step + 1,
        last=token,
        stopped=state.stopped | jnp.isin(token, jnp.array(sampling.stop_ids)),
        tokens=write(state.tokens, token[..., None], state.step, axis=2),
        logprob=write(state.logprob, logprob[..., None], state.step, axis=2),
        entropy=write(state.entropy, entropy[..., None], state.step, axis=2),
      )

    def advance(state: Decoding) -> Decoding:
      """One decode step: the last token through the model, its keys and values into the cache, the next one drawn."""
      written = state.step - 1
      hidden, new = model.decode(
        state.last, prefix, prompts.length, (state.keys, state.values), jnp.broadcast_to(written, (p, group))
      )
      keys, values = write_suffix((state.keys, state.values), new, written)
      return draw(model.logits(hidden), state._replace(keys=keys, values=values))

    layers, _, heads, _, width = prefix[0].shape
    empty = jnp.zeros((layers, p, group, heads, r, width), prefix[0].dtype)
    state = Decoding(
      step=jnp.int32(0),
      last=jnp.zeros((p, group), jnp.int32),
      stopped=jnp.zeros((p, group), bool),
      tokens=jnp.full((p, group, r), sampling.pad_id, jnp.int32),
      logprob=jnp.zeros((p, group, r)),
      entropy=jnp.zeros((p, group, r)),
      keys=empty,
      values=empty,
    )
    state = jax.lax.while_loop(lambda x: (x.step < r) & ~x.stopped.all(), advance, draw(logits, state))
    ended = jnp.isin(state.tokens, jnp.array(sampling.stop_ids))
    # A stop id can equal the pad id: the length is where the first stop stands.
    length = jnp.where(state.stopped, ended.argmax(2) + 1, r)
    return Rollout(
      prompts=prompts,
      tokens=state.tokens,
      length=length,
      logprob=state.logprob,
      entropy=state.entropy,
      stopped=state.stopped,
      prefill_tokens=jax.lax.psum(jnp.int32(prompts.tokens.size), "data"),
      decode_steps=jax.lax.pmax(state.step, "data"),
    )

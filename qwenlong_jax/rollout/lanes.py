"""Continuous batching over groups, on one device of a ring: lanes decode a group each and take the next when it ends.

All of it is one compiled program. What a sample draws depends on its key and its own tokens only, so that the number of
lanes changes the order of the work and not its result.

Letters: P prompts of this ring, G responses to each, W lanes, S prompt slots, R response slots, V vocabulary; N prompts
that are admitted together; M layers of mixed experts, E experts of each token.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, Shaped

from qwenlong_jax.kernels.flash_attention import flash_attention
from qwenlong_jax.kernels.prefix_decode import write_prefix, write_suffix
from qwenlong_jax.kernels.ring_attention import ring_attention, to_ring
from qwenlong_jax.models import costs
from qwenlong_jax.models.presets import Qwen3Config
from qwenlong_jax.models.qwen3 import Cache, Qwen3
from qwenlong_jax.rollout.sampling import Sampling, sample
from qwenlong_jax.types import Prompts


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoding:
  """The state of the loop. A lane without a group has `prompt` P. Slots of the caches are this device's."""

  prompt: Int[Array, " W"]
  drawn: Int[Array, " W"]  # tokens of each branch so far, the last of which is not in the cache
  last: Int[Array, "W G"]
  stopped: Bool[Array, "W G"]
  prefix_length: Int[Array, " W"]
  prefix: Cache  # [layers W K S A] each
  suffix: Cache  # [layers W G K R A] each
  queue: Int[Array, ""]  # the first prompt that no lane has taken
  steps: Int[Array, ""]
  tokens: Int[Array, "P G R"]
  logprob: Float[Array, "P G R"]
  entropy: Float[Array, "P G R"]
  prompt_experts: Int[Array, "P S M E"] | None
  experts: Int[Array, "P G R M E"] | None


@dataclass(frozen=True)
class Lanes:
  """What the loop reads. `axis`: inside shard_map, the mesh axis of the ring over which slots are cut, in dealt blocks
  of `block`; its devices have the same prompts and keys. None: the slots are all here. `record`: the chosen experts."""

  model: Qwen3
  prompts: Prompts
  keys: Key[Array, "P G"]
  sampling: Sampling
  count: int
  axis: str | None
  block: int
  record: bool

  @property
  def ring(self) -> int:
    return 1 if self.axis is None else jax.lax.axis_size(self.axis)

  @property
  def _place(self) -> Array | int:
    """This device's in the ring."""
    return 0 if self.axis is None else jax.lax.axis_index(self.axis)

  def run(self) -> Decoding:
    """The state when every group has ended."""
    prompts = len(self.keys)

    def idle(state: Decoding) -> Array:
      return ((state.prompt == prompts).any()) & (state.queue < prompts)

    def one(state: Decoding) -> Decoding:
      lane = jnp.argmax(state.prompt == prompts).astype(jnp.int32)
      return self.admit(state, lane[None], state.queue[None])

    def running(state: Decoding) -> Array:
      return (state.prompt < prompts).any()

    if self.count == prompts:
      every = jnp.arange(prompts, dtype=jnp.int32)
      return jax.lax.while_loop(running, self.advance, self.admit(self.start(), every, every))

    def body(state: Decoding) -> Decoding:
      state = jax.lax.while_loop(idle, one, state)
      return jax.lax.while_loop(lambda state: running(state) & ~idle(state), self.advance, state)

    return jax.lax.while_loop(lambda state: running(state) | idle(state), body, self.start())

  def start(self) -> Decoding:
    """All lanes empty."""
    config, (prompts, group), w = self.model.config, self.keys.shape, self.count
    layers, heads, width = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
    slots, responses = prefix_slots(self.prompts.tokens.shape[1], self.ring, self.block), self.sampling.max_tokens

    def cache(*sizes: int) -> Cache:
      k, v = (jnp.zeros((layers, w, *sizes, width), self.model.dtype) for _ in range(2))
      return k, v

    def chosen(*sizes: int) -> Array | None:
      mixed = config.layer_kinds.count("moe")
      return jnp.zeros((*sizes, mixed, config.num_experts_per_tok), jnp.uint16) if self.record else None

    each = jnp.zeros((prompts, group, responses))
    return Decoding(
      prompt=jnp.full(w, prompts, jnp.int32),
      drawn=jnp.zeros(w, jnp.int32),
      last=jnp.zeros((w, group), jnp.int32),
      stopped=jnp.ones((w, group), bool),
      prefix_length=jnp.zeros(w, jnp.int32),
      prefix=cache(heads, slots),
      suffix=cache(group, heads, suffix_slots(responses, self.ring)),
      queue=jnp.int32(0),
      steps=jnp.int32(0),
      tokens=jnp.full(each.shape, self.sampling.pad_id, jnp.int32),
      logprob=each,
      entropy=each,
      prompt_experts=chosen(prompts, slots),
      experts=chosen(prompts, group, responses),
    )

  def admit(self, state: Decoding, lane: Int[Array, " N"], number: Int[Array, " N"]) -> Decoding:
    """The prompts `number` are prefilled into the lanes `lane`, and their first tokens drawn. N is 1 or W."""
    hidden, prefix, length, experts = self.prefill(number)
    if len(lane) < self.count:
      prefix = write_prefix(state.prefix, prefix, lane[0])
    logits = self.model.logits(hidden, self.axis)[:, None]
    group = state.last.shape[1]
    logits = jnp.broadcast_to(logits, (len(lane), group, logits.shape[-1]))
    state = replace(
      state,
      prompt=placed(state.prompt, lane, number),
      drawn=placed(state.drawn, lane, 0),
      stopped=placed(state.stopped, lane, False),
      prefix_length=placed(state.prefix_length, lane, length),
      prefix=prefix,
      queue=state.queue + len(lane),
    )
    if state.prompt_experts is not None and experts is not None:
      recorded = state.prompt_experts.at[number].set(jnp.moveaxis(experts, 0, 2).astype(state.prompt_experts.dtype))
      state = replace(state, prompt_experts=recorded)
    return self.draw(state, lane, logits)

  def prefill(
    self, number: Int[Array, " N"]
  ) -> tuple[Float[Array, "N D"], Cache, Int[Array, " N"], Int[Array, "M N S E"] | None]:
    """Hidden states of the last tokens, and of this device's slots the caches, lengths and chosen experts."""
    tokens, length = self.prompts.tokens[number], self.prompts.length[number]
    slots = prefix_slots(tokens.shape[1], self.ring, self.block)
    tokens = jnp.pad(tokens, ((0, 0), (0, slots * self.ring - tokens.shape[1])))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    attention = flash_attention
    if self.axis is not None:
      attention = partial(ring_attention, axis=self.axis, block=self.block)
      mine = lambda x: jax.lax.dynamic_slice_in_dim(  # noqa: E731
        to_ring(x, self.ring, self.block), self._place * slots, slots, axis=1
      )
      tokens, positions = mine(tokens), mine(positions)
    inside = positions < length[:, None]
    hidden, cache, experts = self.model.prefill(
      tokens, positions, jnp.where(inside, 1, -1), attention=attention, axis=self.axis
    )
    ends = (positions == length[:, None] - 1)[..., None]
    last = jnp.where(ends, hidden, 0).sum(1)  # of one slot, on one device
    last = last if self.axis is None else jax.lax.psum(last, self.axis)
    return last, cache, inside.sum(1, dtype=jnp.int32), experts

  def advance(self, state: Decoding) -> Decoding:
    """One decode step: the last tokens through the model, their keys and values into the cache, the next ones drawn."""
    written = state.drawn - 1
    # Token t of a response lies on device t modulo the ring. The others write it too, where their own next one will be.
    held = -(-(written - self._place) // self.ring)
    runs = ~state.stopped
    length = self.prompts.length[jnp.minimum(state.prompt, len(self.prompts.length) - 1)]
    hidden, new, experts = self.model.decode(
      state.last,
      (length + written)[:, None] + jnp.zeros_like(state.last),
      state.prefix,
      jnp.where(runs.any(1), state.prefix_length, 0),  # of those that have ended nothing is read
      state.suffix,
      jnp.where(runs, held[:, None], 0),
      axis=self.axis,
    )
    together = self.count == len(self.prompts.length)
    suffix = write_suffix(state.suffix, new, held.max() if together else jnp.maximum(held, 0))
    state = replace(state, suffix=suffix, steps=state.steps + 1)
    if state.experts is not None and experts is not None:
      at = state.prompt[:, None], jnp.arange(state.last.shape[1]), written[:, None]
      chosen = jnp.moveaxis(experts, 0, 2).astype(state.experts.dtype)
      state = replace(state, experts=state.experts.at[at].set(chosen, mode="drop"))
    return self.draw(state, jnp.arange(self.count), self.model.logits(hidden, self.axis))

  def draw(self, state: Decoding, lane: Int[Array, " N"], logits: Float[Array, "N G V"]) -> Decoding:
    """The next token of every response of these lanes that still runs."""
    (n, group, vocabulary), sampling = logits.shape, self.sampling
    prompts = len(self.prompts.length)
    prompt, drawn, stopped = state.prompt[lane], state.drawn[lane], state.stopped[lane]
    keys = self.keys[jnp.minimum(prompt, prompts - 1)]
    keys = jax.vmap(jax.random.fold_in)(keys.reshape(-1), jnp.repeat(drawn, group))
    token, logprob, entropy = (
      x.reshape(n, group)
      for x in sample(
        logits.reshape(-1, vocabulary), keys, sampling.temperature, sampling.top_p, sampling.entropy_temperature
      )
    )
    token = jnp.where(stopped, sampling.pad_id, token).astype(jnp.int32)
    logprob, entropy = (jnp.where(stopped, 0.0, x) for x in (logprob, entropy))
    at = prompt[:, None], jnp.arange(group), drawn[:, None]
    stopped = stopped | jnp.isin(token, jnp.array(sampling.stop_ids, jnp.int32))
    drawn = drawn + 1
    ended = stopped.all(1) | (drawn == sampling.max_tokens)
    return replace(
      state,
      prompt=placed(state.prompt, lane, jnp.where(ended, prompts, prompt)),
      drawn=placed(state.drawn, lane, drawn),
      last=placed(state.last, lane, token),
      stopped=placed(state.stopped, lane, stopped | ended[:, None]),
      tokens=state.tokens.at[at].set(token, mode="drop"),
      logprob=state.logprob.at[at].set(logprob, mode="drop"),
      entropy=state.entropy.at[at].set(entropy, mode="drop"),
    )


def placed(whole: Shaped[Array, "W ..."], lane: Int[Array, " N"], part: Shaped[ArrayLike, "N ..."]) -> Array:
  """`whole` with `part` in these lanes; of all lanes, in their order, it is `part`."""
  if len(lane) == len(whole):
    return jnp.broadcast_to(jnp.asarray(part, whole.dtype), whole.shape)
  return whole.at[lane].set(part)


def prefix_slots(prompt_slots: int, ring: int, block: int) -> int:
  """Slots of a prompt's cache on each device: whole rounds of blocks."""
  return prompt_slots if ring == 1 else -(-prompt_slots // (ring * block)) * block


def suffix_slots(response_slots: int, ring: int) -> int:
  """Slots of a response's cache on each device; one more where other devices' tokens are written before one's own."""
  return response_slots if ring == 1 else -(-response_slots // ring) + 1


def lane_bytes(
  config: Qwen3Config, prompt_slots: int, response_slots: int, group: int, ring: int, block: int, itemsize: int
) -> int:
  """What the caches of a lane take on each device."""
  slots = prefix_slots(prompt_slots, ring, block) + group * suffix_slots(response_slots, ring)
  return slots * costs.cache_bytes(config, itemsize)

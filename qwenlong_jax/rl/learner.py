"""The learner: one optimizer step on a batch, and what its tokens were worth under the policy before it.

Rows are cut over the mesh axis "data", the slots of a row over "ring"; parameters and optimizer over both.

Letters: N rows of L slots.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree

from qwenlong_jax.kernels import grouped_matmul, ring_attention
from qwenlong_jax.kernels.flash_attention import flash_attention
from qwenlong_jax.kernels.token_stats import token_stats
from qwenlong_jax.models.qwen3 import Qwen3
from qwenlong_jax.parallelism import hosts, rules
from qwenlong_jax.rl.loss import surrogate
from qwenlong_jax.types import TrainBatch

HOST = "pinned_host"  # the kind of memory to which arrays are offloaded


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
  """What a step changes. `step` counts batches seen, those the optimizer skipped included."""

  step: Int[Array, ""]
  params: PyTree
  optimizer: PyTree


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UpdateMetrics:
  """Numbers of one update, of the policy before it.

  `applied` is False where nothing was to be learned or the gradient was not finite. `nll` and `accuracy` are of rows
  that were computed: those with any weight, and what fills up the last micro-batch. `logprob` is of a slot's target
  at the learner's temperature, in nats; 0 in slots that predict nothing and in rows that were not computed.
  """

  loss: Float[Array, ""]
  gradient_norm: Float[Array, ""]
  nll: Float[Array, ""]
  accuracy: Float[Array, ""]
  learned_tokens: Int[Array, ""]
  finite: Array
  applied: Array
  logprob: Float[Array, "N L"]


@dataclass(frozen=True)
class Ratio:
  """How a token's probability ratio is bounded; all None is strictly on-policy (eq. 4)."""

  clip_low: float | None = None
  clip_high: float | None = None
  truncate: float | None = None


class Learner:
  """Compiled functions over a Qwen3 (as its NNX graph), an optimizer and a mesh; the state stays with the caller."""

  def __init__(
    self,
    create: Callable[[Key[Array, ""]], Qwen3],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    temperature: float,
    micro_rows: int | None = None,
    ratio: Ratio | None = None,
    offload: bool = False,
    ring_block: int = ring_attention.BLOCK,
  ):
    """`create(key)` builds the model; `micro_rows` rows per device go through it at a time (None: all of them).

    Micro-batches of rows without any weight (zero-variance groups, masked ones) come last and are not computed, on no
    device as soon as none has others left. Blocks of `ring_block` slots are dealt round the ring (`to_ring`).
    `offload`: between its steps the optimizer's state lies in the hosts' memory.
    """
    self.create, self.optimizer, self.mesh, self.ring_block = create, optimizer, mesh, ring_block
    self.temperature, self.micro_rows, self.ratio, self.offload = temperature, micro_rows, ratio or Ratio(), offload
    abstract = jax.eval_shape(create, jax.random.key(0))
    self.graph, self._abstract_params = nnx.split(abstract)
    self._specs = rules.specs(self._abstract_params, mesh)
    self._shardings = self._places(jax.eval_shape(self._with_params, self._abstract_params))
    self._create = jax.jit(self._initial, out_shardings=self._shardings)
    tpu = mesh.devices.flat[0].platform == "tpu"
    options = ring_attention.COMPILER_OPTIONS | grouped_matmul.COMPILER_OPTIONS if tpu else None
    self._update = jax.jit(
      self._step, donate_argnums=0, out_shardings=(self._shardings, None), compiler_options=options
    )

  def abstract_state(self) -> TrainState:
    """Shapes and shardings of the state, for creating and restoring it."""
    state = jax.eval_shape(self._with_params, self._abstract_params)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, self._shardings)

  def _places(self, state: TrainState) -> TrainState:
    """The sharding of each of its arrays, those of the optimizer on the hosts if they are offloaded."""
    shardings: TrainState = rules.shardings(state, self.mesh)
    if not self.offload:
      return shardings
    return replace(shardings, optimizer=jax.tree.map(lambda s: s.with_memory_kind(HOST), shardings.optimizer))

  def create_state(self, key: Key[Array, ""]) -> TrainState:
    """Random parameters, created on their shards."""
    return self._create(key)

  def state_of(self, params: PyTree) -> TrainState:
    """A fresh optimizer around given parameters."""
    return jax.jit(self._with_params, out_shardings=self._shardings)(params)

  def _initial(self, key: Key[Array, ""]) -> TrainState:
    return self._with_params(nnx.state(self.create(key)))

  def _with_params(self, params: PyTree) -> TrainState:
    return TrainState(step=jnp.int32(0), params=params, optimizer=self.optimizer.init(params))

  def update(self, state: TrainState, batch: TrainBatch) -> tuple[TrainState, UpdateMetrics]:
    """One optimizer step up the objective sum(weight * ratio) (eq. 4); `state` is donated.

    Where every weight is 0 (nothing to learn from) or the gradient is not finite, parameters and optimizer stay as they
    are and only `step` advances. `batch` holds this process's rows, the metrics' `logprob` those of all.

    Raises:
      ValueError: the rows do not divide over the devices and micro-batches.
    """
    return self._update(state, self._put(batch))

  def traced(self, rows: int, slots: int) -> jax.stages.Traced:
    """What `update` runs for a batch of this shape, from shapes alone."""
    shape = partial(jax.ShapeDtypeStruct, (rows, slots), sharding=rules.rows(self.mesh))
    shapes: Any = [shape(jnp.int32)] * 5 + [shape(jnp.float32)] * 2
    return self._update.trace(self.abstract_state(), TrainBatch(*shapes))

  def _put(self, batch: TrainBatch) -> TrainBatch:
    devices, here = self.mesh.shape["data"], hosts.places(self.mesh)
    rows = batch.tokens.shape[0]
    micro = self.micro_rows or max(rows // here, 1)
    if rows % (here * micro):
      raise ValueError(
        f"{rows * devices // here} rows do not divide by mesh.data={devices} times micro_rows={micro}; "
        "change batch.prompts or micro_rows"
      )
    return hosts.put(batch, self.mesh)

  def _loss(self, params: PyTree, micro: TrainBatch) -> tuple[Float[Array, ""], tuple[Array, Array]]:
    """(loss, ([loss, sum of nll, correct, targets], log-probabilities)) of a micro-batch; plain sums of its slots."""
    model = nnx.merge(self.graph, params)
    ring = self.mesh.shape["ring"] > 1
    attention = partial(ring_attention.ring_attention, axis="ring", block=self.ring_block) if ring else flash_attention
    experts = None if micro.experts is None else jnp.moveaxis(jnp.asarray(micro.experts, jnp.int32), 2, 0)
    hidden = model(micro.tokens, micro.position, micro.segment, attention=attention, fetch=self._fetch, experts=experts)
    hidden = hidden.reshape(-1, hidden.shape[-1])
    logprob, _ = token_stats(hidden, model.head_weight(self._fetch), jnp.ravel(micro.target), self.temperature)
    real = micro.sample >= 0
    logprob = jnp.where(real, logprob.reshape(micro.tokens.shape), 0.0)
    terms = surrogate(logprob, jnp.asarray(micro.old_logprob), jnp.asarray(micro.weight), **vars(self.ratio))
    loss = jnp.where(real, terms, 0.0).sum()
    # More than half of the mass on the target: a lower bound of greedy accuracy that needs no logits.
    sure = (real & (logprob > jnp.log(0.5))).sum()
    sums = jnp.stack([loss, -logprob.sum(), sure, real.sum()]).astype(jnp.float32)
    return loss, jax.lax.stop_gradient((sums, logprob))

  def _fetch(self, weights: PyTree, *path: str | int) -> PyTree:
    """Those of a layer (or of `path` outside of the layers), whole on this device."""
    specs = self._specs
    for key in path:
      specs = specs[key]
    if path[0] == "runs":  # without the dimension of the layers
      specs = jax.tree.map(lambda spec: PartitionSpec(*spec[1:]), specs)
    return rules.gather(weights, specs)

  def _gradient(self, params: PyTree, batch: TrainBatch) -> tuple[PyTree, Float[Array, "4"], Float[Array, "N L"]]:
    axes = self.mesh.axis_names
    vary = partial(jax.lax.pcast, to="varying")

    def local(params: PyTree, batch: TrainBatch) -> tuple[PyTree, Array, Array]:
      # Over axes by which a parameter is cut its gradient is summed where it is gathered; over the others, made
      # varying, it stays on this device until one sum over all, after the last micro-batch.
      params = jax.tree.map(lambda x, spec: vary(x, rules.uncut(spec, self.mesh)), params, self._specs)

      rows = batch.tokens.shape[0]
      size = self.micro_rows or rows
      # A row without weight has no gradient: such rows come last, and the loop ends before them. All devices gather
      # parameters together, so that each goes on until the last has finished.
      weighs = jax.lax.pmax((batch.weight != 0).any(axis=1), "ring")
      order = jnp.argsort(~weighs, stable=True)
      steps = jax.lax.pmax(-(-weighs.sum() // size), "data")

      def accumulate(index: Array, carry: tuple) -> tuple:
        total, logprobs = carry
        chosen = jax.lax.dynamic_slice_in_dim(order, index * size, size)
        micro = jax.tree.map(lambda x: x[chosen], batch)
        (_, (sums, logprob)), grads = jax.value_and_grad(self._loss, has_aux=True)(params, micro)
        # Or the compiler sums up embeddings and heads that are whole, and cuts them after the last micro-batch.
        grads = jax.lax.optimization_barrier(grads)
        return jax.tree.map(jnp.add, total, (grads, sums)), logprobs.at[chosen].set(logprob)

      sums, logprobs = (vary(jnp.zeros(shape), axes) for shape in (4, batch.weight.shape))
      zeros = (jax.tree.map(jnp.zeros_like, params), sums)
      (grads, sums), logprobs = jax.lax.fori_loop(0, steps, accumulate, (zeros, logprobs))
      grads = jax.tree.map(lambda x, spec: jax.lax.psum(x, rules.uncut(spec, self.mesh)), grads, self._specs)
      return grads, jax.lax.psum(sums, axes), logprobs

    batch, length = self._dealt(batch), batch.tokens.shape[1]
    grads, sums, logprob = jax.shard_map(
      local,
      mesh=self.mesh,
      in_specs=(self._specs, rules.SLOTS),
      out_specs=(self._specs, PartitionSpec(), rules.SLOTS),
    )(params, batch)
    if (ring := self.mesh.shape["ring"]) > 1:
      logprob = ring_attention.from_ring(logprob, ring, self.ring_block)[:, :length]
      # Whole rows: a ring may go through several processes, each of which asks for all slots of its rows.
      logprob = jax.lax.with_sharding_constraint(logprob, rules.rows(self.mesh))
    return grads, sums, logprob

  def _dealt(self, batch: TrainBatch) -> TrainBatch:
    """Filled up with padding to whole rounds of blocks, each on its device of the ring."""
    if (ring := self.mesh.shape["ring"]) == 1:
      return batch
    missing = -batch.tokens.shape[1] % (ring * self.ring_block)
    fill = {"segment": -1, "sample": -1}

    def dealt(name: str, x: Array) -> Array:
      padding = ((0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2))
      return ring_attention.to_ring(jnp.pad(x, padding, constant_values=fill.get(name, 0)), ring, self.ring_block)

    return TrainBatch(**{name: dealt(name, x) for name, x in vars(batch).items() if x is not None})

  def _step(self, state: TrainState, batch: TrainBatch) -> tuple[TrainState, UpdateMetrics]:
    grads, sums, logprob = self._gradient(state.params, batch)
    norm = optax.tree.norm(grads)
    learned = (batch.weight != 0).sum()
    finite = jnp.isfinite(norm) & jnp.isfinite(sums[0])
    applied = finite & (learned > 0)
    old = state.optimizer
    if self.offload:
      old = jax.device_put(old, rules.shardings(old, self.mesh))

    def apply(params: PyTree, old: PyTree) -> tuple[PyTree, PyTree]:
      updates, optimizer = self.optimizer.update(grads, old, params)
      return optax.apply_updates(params, updates), optimizer

    params, optimizer = jax.lax.cond(applied, apply, lambda params, old: (params, old), state.params, old)
    if self.offload:
      optimizer = jax.device_put(optimizer, self._shardings.optimizer)
    loss, nll, sure, targets = sums
    count = jnp.maximum(targets, 1)
    return TrainState(step=state.step + 1, params=params, optimizer=optimizer), UpdateMetrics(
      loss=loss,
      gradient_norm=norm,
      nll=nll / count,
      accuracy=sure / count,
      learned_tokens=learned,
      finite=finite,
      applied=applied,
      logprob=logprob,
    )

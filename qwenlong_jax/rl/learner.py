"""The learner: one optimizer step on a batch, and what its tokens were worth under the policy before it.

Letters: N rows of L slots.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PyTree

from qwenlong_jax.kernels.token_stats import token_stats
from qwenlong_jax.models.qwen3 import Qwen3
from qwenlong_jax.parallelism import rules
from qwenlong_jax.rl.loss import surrogate
from qwenlong_jax.types import TrainBatch


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
  ):
    """`create(key)` builds the model; `micro_rows` rows per device go through it at a time (None: all of them).

    Micro-batches of rows without any weight (zero-variance groups, masked ones) are not computed; each device skips its
    own, so that a step lasts as long as the device with the most left.
    """
    self.create, self.optimizer, self.mesh = create, optimizer, mesh
    self.temperature, self.micro_rows, self.ratio = temperature, micro_rows, ratio or Ratio()
    abstract = jax.eval_shape(create, jax.random.key(0))
    self.graph, self._abstract_params = nnx.split(abstract)
    self._create = jax.jit(self._initial, out_shardings=rules.shardings(self.abstract_state(), mesh))
    self._update = jax.jit(self._step, donate_argnums=0)

  def abstract_state(self) -> TrainState:
    """Shapes and shardings of the state, for creating and restoring it."""
    state = jax.eval_shape(self._with_params, self._abstract_params)
    return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, rules.shardings(state, self.mesh)
    )

  def create_state(self, key: Key[Array, ""]) -> TrainState:
    """Random parameters, created on their shards."""
    return self._create(key)

  def state_of(self, params: PyTree) -> TrainState:
    """A fresh optimizer around given parameters."""
    shardings = rules.shardings(self.abstract_state(), self.mesh)
    return jax.jit(self._with_params, out_shardings=shardings)(params)

  def _initial(self, key: Key[Array, ""]) -> TrainState:
    return self._with_params(nnx.state(self.create(key)))

  def _with_params(self, params: PyTree) -> TrainState:
    return TrainState(step=jnp.int32(0), params=params, optimizer=self.optimizer.init(params))

  def update(self, state: TrainState, batch: TrainBatch) -> tuple[TrainState, UpdateMetrics]:
    """One optimizer step up the objective sum(weight * ratio) (eq. 4); `state` is donated.

    Where every weight is 0 (nothing to learn from) or the gradient is not finite, parameters and optimizer stay as they
    are and only `step` advances.

    Raises:
      ValueError: the rows do not divide over the devices and micro-batches.
    """
    return self._update(state, self._put(batch))

  def _put(self, batch: TrainBatch) -> TrainBatch:
    rows, devices = batch.tokens.shape[0], self.mesh.shape["data"]
    micro = self.micro_rows or max(rows // devices, 1)
    if rows % (devices * micro):
      raise ValueError(
        f"{rows} rows do not divide by mesh.data={devices} times micro_rows={micro}; change batch.prompts or micro_rows"
      )
    return jax.device_put(batch, rules.rows(self.mesh))

  def _loss(self, params: PyTree, micro: TrainBatch) -> tuple[Float[Array, ""], tuple[Array, Array]]:
    """(loss, ([loss, sum of nll, correct, targets], log-probabilities)) of a micro-batch; plain sums of its slots."""
    model = nnx.merge(self.graph, params)
    hidden = model(micro.tokens, micro.position, micro.segment)
    hidden = hidden.reshape(-1, hidden.shape[-1])
    logprob, _ = token_stats(hidden, model.head_weight(), jnp.ravel(micro.target), self.temperature)
    real = micro.sample >= 0
    logprob = jnp.where(real, logprob.reshape(micro.tokens.shape), 0.0)
    terms = surrogate(logprob, jnp.asarray(micro.old_logprob), jnp.asarray(micro.weight), **vars(self.ratio))
    loss = jnp.where(real, terms, 0.0).sum()
    # More than half of the mass on the target: a lower bound of greedy accuracy that needs no logits.
    sure = (real & (logprob > jnp.log(0.5))).sum()
    sums = jnp.stack([loss, -logprob.sum(), sure, real.sum()]).astype(jnp.float32)
    return loss, jax.lax.stop_gradient((sums, logprob))

  def _gradient(self, params: PyTree, batch: TrainBatch) -> tuple[PyTree, Float[Array, "4"], Float[Array, "N L"]]:
    def local(params: PyTree, batch: TrainBatch) -> tuple[PyTree, Array, Array]:
      # Varying parameters keep the gradient on this device until one sum over all, after the last micro-batch.
      params = jax.tree.map(lambda x: jax.lax.pcast(x, "data", to="varying"), params)

      rows = batch.tokens.shape[0]
      size = self.micro_rows or rows
      # A row without weight has no gradient: such rows come last, and the loop ends before them.
      weighs = (batch.weight != 0).any(axis=1)
      order = jnp.argsort(~weighs, stable=True)

      def accumulate(index: Array, carry: tuple) -> tuple:
        total, logprobs = carry
        chosen = jax.lax.dynamic_slice_in_dim(order, index * size, size)
        micro = jax.tree.map(lambda x: x[chosen], batch)
        (_, (sums, logprob)), grads = jax.value_and_grad(self._loss, has_aux=True)(params, micro)
        return jax.tree.map(jnp.add, total, (grads, sums)), logprobs.at[chosen].set(logprob)

      sums, logprobs = (jax.lax.pcast(jnp.zeros(n), "data", to="varying") for n in (4, batch.weight.shape))
      zeros = (jax.tree.map(jnp.zeros_like, params), sums)
      total, logprobs = jax.lax.fori_loop(0, -(-weighs.sum() // size), accumulate, (zeros, logprobs))
      return *jax.lax.psum(total, "data"), logprobs

    whole, rows = PartitionSpec(), PartitionSpec("data")
    return jax.shard_map(local, mesh=self.mesh, in_specs=(whole, rows), out_specs=(whole, whole, rows))(params, batch)

  def _step(self, state: TrainState, batch: TrainBatch) -> tuple[TrainState, UpdateMetrics]:
    grads, sums, logprob = self._gradient(state.params, batch)
    grads = jax.lax.with_sharding_constraint(grads, rules.shardings(grads, self.mesh))
    norm = optax.tree.norm(grads)
    learned = (batch.weight != 0).sum()
    finite = jnp.isfinite(norm) & jnp.isfinite(sums[0])
    applied = finite & (learned > 0)

    def apply(state: TrainState) -> tuple[PyTree, PyTree]:
      updates, optimizer = self.optimizer.update(grads, state.optimizer, state.params)
      return optax.apply_updates(state.params, updates), optimizer

    params, optimizer = jax.lax.cond(applied, apply, lambda state: (state.params, state.optimizer), state)
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

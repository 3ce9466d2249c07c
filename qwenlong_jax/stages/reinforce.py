"""The reinforcement loop (sections 2.2, 4.2-4.4): sample, score, weigh, learn; one gradient step per batch.

Each process samples, scores and packs its own prompts; what a whole batch says (eqs. 7, 11) is made of small numbers of
every prompt, which all processes gather.

Letters: P prompts, p of them of this process, G responses to each, R response slots.
"""

from collections import Counter
from contextlib import closing
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Float
from ml_collections import ConfigDict

from qwenlong_jax.data import loading
from qwenlong_jax.parallelism import hosts
from qwenlong_jax.rl import advantages, aepo, clipping, loss, packing
from qwenlong_jax.rl.learner import Learner, Ratio, TrainState
from qwenlong_jax.rollout.weights import for_decoding
from qwenlong_jax.stages import budget, difficulty
from qwenlong_jax.stages.answering import answer, rewards_of, score
from qwenlong_jax.stages.session import Session
from qwenlong_jax.stages.setup import Design, Workshop, on_devices, prompt_slots, sampling_of, tokenize
from qwenlong_jax.types import TASKS, Array, Example, Rollout, Score

_BEFORE = 2**31 - 1  # folded into a stage's key where its steps fold theirs


def make_learner(shop: Design) -> Learner:
  """AdamW at a constant learning rate (section 4.2)."""
  config = shop.config
  settings = config.optimizer
  optimizer = optax.adamw(settings.learning_rate, b1=settings.b1, b2=settings.b2, weight_decay=settings.weight_decay)
  if settings.max_norm:
    optimizer = optax.chain(optax.clip_by_global_norm(settings.max_norm), optimizer)
  ratio = Ratio(config.loss.clip_low or None, config.loss.clip_high or None, config.loss.truncate or None)
  return Learner(
    shop.create,
    optimizer,
    shop.mesh,
    temperature=config.sampling.temperature,
    micro_rows=config.batch.micro_rows or None,
    ratio=ratio,
    offload=settings.offload,
  )


def train(
  shop: Workshop, session: Session, learner: Learner, state: TrainState, *, name: str, number: int, first: int
) -> TrainState:
  """Steps `state.step`.. of the stage `name`, the run's `number`-th, whose first step is `first` in the run's count."""
  config, carry = shop.config, session.carry
  stage, group = config.stages[name], config.batch.group
  band = aepo.Band(config.aepo.low, config.aepo.high)
  sampling, slots = sampling_of(shop, stage.response_tokens), prompt_slots(shop, stage.prompt_tokens)
  most = packing.most_slots(slots, stage.response_tokens, group)
  budget.check_update(shop, learner, config.batch.prompts, most)
  replays = config.sampling.replay_experts and "moe" in shop.model.layer_kinds
  engine = budget.sampler(shop, learner, config.batch.prompts, slots, group=group, sampling=sampling, record=replays)
  key = jax.random.fold_in(jax.random.key(config.seed), number)
  ask = partial(
    answer,
    shop,
    engine,
    jax.random.fold_in(key, _BEFORE),
    size=config.batch.prompts,
    slots=slots,
    group=group,
    sampling=sampling,
    what=f"before {name}",
  )
  folder = difficulty.training_data(shop, session, state, name, ask)

  mesh, settings = shop.mesh, config.data
  mine = hosts.rows(mesh, config.batch.prompts)
  with closing(
    loading.load(folder, config.batch.prompts, config.seed + number, mine, settings.workers, settings.balanced)
  ) as tasks:
    if carry.iterator is not None:
      tasks.set_state(carry.iterator)
    for index in range(int(state.step), stage.steps):
      # 1-3. A task-balanced batch, and G responses to each of its prompts.
      examples = next(tasks)
      carry.iterator = tasks.get_state()
      prompts = on_devices(shop, tokenize(shop, examples, slots))
      weights = for_decoding(state.params, mesh, shop.dtype)
      sampled = engine.generate(weights, prompts, jax.random.fold_in(key, index), group=group, sampling=sampling)
      sampled = hosts.fetch(sampled, mesh)
      del weights  # room for the update

      # 4-5. Rewards, and each sample's advantage over the global batch (eq. 7).
      scores = score(shop, examples, sampled)
      mask = packing.response_mask(sampled)
      task, reward, failure, length, stopped, spread = hosts.gather(outcomes(examples, scores, sampled, mask), mesh)
      reward = dealt(reward, config, first + index)
      valid = np.ones(reward.shape, bool)
      advantage = advantages.advantages(reward, task, valid, config.advantage.scope, config.advantage.ddof)

      # 6-7. Rows with the prompt once, and the entropy of the policy before the update (eq. 11).
      used = int((prompts.length - 1 + length.sum(axis=1)).max())
      row_slots = packing.row_slots(used, most, config.batch.row_sizes)
      batch = packing.shared_prefix(sampled, shop.tokenizer.pad_id, row_slots)
      entropy = aepo.batch_entropy(spread.reshape(-1, 1), length.reshape(-1, 1) > 0)  # a mean for each sample

      # 8. The latch, then what each token weighs in the objective (eqs. 4, 8, 9; section 4.4).
      carry.latch, _ = aepo.latch(carry.latch, entropy, band)
      mode = config.aepo.mode
      keep = np.ones(reward.shape, bool) if mode == "off" else aepo.keep(advantage, carry.latch, entropy, band, mode)
      indicator = clipping.indicator(
        advantage[mine].reshape(-1),
        sampled.entropy.reshape(-1, mask.shape[2]),
        mask.reshape(-1, mask.shape[2]),
        config.clipping.mode,
        config.clipping.tau,
      ).reshape(mask.shape)
      coefficient = loss.sample_weights(advantage, keep, length, config.loss.normalizer, config.loss.drop)
      weight = np.where(indicator & mask, coefficient[mine][..., None], 0.0)

      # 9-10. One optimizer step; then the record.
      state, update = learner.update(state, packing.with_weights(batch, weight, mask))
      update = hosts.fetch(update, mesh)
      session.check_finite(bool(update.finite), config.optimizer.nonfinite_limit)
      row = record(reward, task, failure, length, stopped)
      row |= gaps(*hosts.gather(row_gaps(packing.unpack(batch, update.logprob, mask), sampled, mask, weight), mesh))
      row |= {
        "stage": name,
        "prefill_tokens": int(sampled.prefill_tokens),
        "entropy": entropy,
        "band_low": band.low,
        "band_high": band.high,
        "latch": carry.latch,
        "masked_samples": int((~keep).sum()),
        "zero_variance_groups": int(advantages.zero_variance_groups(reward, valid).sum()),
        "loss": float(update.loss),
        "gradient_norm": float(update.gradient_norm),
        "learned_tokens": int(update.learned_tokens),
        "skipped": skipped(int(update.learned_tokens), bool(update.finite)),
      }
      tokens = int(length.sum() + prompts.length.sum())
      session.finish_step(first + index, state, row, tokens, last=index + 1 == stage.steps)
  return state


def dealt(reward: Float[np.ndarray, "P G"], config: ConfigDict, step: int) -> Float[np.ndarray, "P G"]:
  """The rewards; in the control of `rewards.shuffle`, dealt at random to the batch's samples."""
  if not config.rewards.shuffle:
    return reward
  return np.random.default_rng([config.seed, step]).permutation(reward.reshape(-1)).reshape(reward.shape)


def outcomes(
  examples: list[Example], scores: list[list[Score]], sampled: Rollout, mask: np.ndarray
) -> tuple[Array, ...]:
  """Of this process's prompts: task [p], and [p G] reward, failure, length, stopped, the response's mean entropy."""
  task = np.array([TASKS.index(example.task) for example in examples])
  failure = np.array([[one.failure for one in group] for group in scores])
  spread = aepo.sequence_means(np.asarray(sampled.entropy, np.float64), mask)
  return task, rewards_of(scores), failure, sampled.length, sampled.stopped, spread


def row_gaps(logprob: np.ndarray, sampled: Rollout, mask: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, ...]:
  """Of each row [p]: the tokens whose log-probability sampler and trainer computed; sum and maximum of |difference|."""
  learned = mask & (weight != 0).any(axis=(1, 2), keepdims=True)  # Other rows may not be computed.
  gap = np.where(learned, np.abs(logprob - sampled.logprob), 0.0).astype(np.float64)
  return learned.sum((1, 2)), gap.sum((1, 2)), gap.max((1, 2))


def gaps(tokens: np.ndarray, total: np.ndarray, largest: np.ndarray) -> dict[str, float | None]:
  """`row_gaps` of all rows, for the record."""
  count = int(tokens.sum())
  return {"gap_mean": float(total.sum()) / count if count else None, "gap_max": float(largest.max()) if count else None}


def skipped(learned: int, finite: bool) -> str:
  """Why the optimizer did not move, "" if it did."""
  if not finite:
    return "nonfinite"
  return "" if learned else "nothing_to_learn"


def record(
  reward: np.ndarray, task: np.ndarray, failure: np.ndarray, length: np.ndarray, stopped: np.ndarray
) -> dict[str, Any]:
  """What a batch of rollouts looked like."""
  return {
    "reward": float(reward.mean()),
    "reward_by_task": {TASKS[t]: float(reward[task == t].mean()) for t in np.unique(task)},
    "response_length": float(length.mean()),
    "stopped_fraction": float(stopped.mean()),
    "failures": dict(Counter(str(name) for name in failure.reshape(-1) if name)),
  }

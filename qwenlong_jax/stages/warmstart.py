"""Supervised fine-tuning on worked solutions: what gives a fresh model the format and a first grip on the tasks.

Its loss is the policy gradient's with an advantage of 1 for every target, all of one normaliser: the gradient of the
mean log-likelihood. So it needs no learner of its own.
"""

import dataclasses
from contextlib import closing

import jax
import numpy as np
import optax

from qwenlong_jax.data import loading
from qwenlong_jax.parallelism import hosts
from qwenlong_jax.rl import packing
from qwenlong_jax.rl.learner import Learner, TrainState
from qwenlong_jax.stages.session import Session
from qwenlong_jax.stages.setup import Workshop, data_folder
from qwenlong_jax.types import Example, TrainBatch


def make_learner(shop: Workshop) -> Learner:
  """AdamW under a warm-up and a cosine to a tenth."""
  settings = shop.config.warmstart
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, settings.learning_rate, settings.warmup_steps, settings.steps, settings.learning_rate / 10
  )
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))
  return Learner(shop.create, optimizer, shop.mesh, temperature=1.0)


def train(shop: Workshop, session: Session, learner: Learner, state: TrainState) -> TrainState:
  """Steps `state.step`.. to the end of the warm start, the run's first stage."""
  config = shop.config
  settings = config.warmstart
  folder = data_folder(shop, "train", settings.prompt_tokens, config.data.examples)
  rows = hosts.rows(shop.mesh, settings.rows)
  with closing(loading.load(folder, settings.rows, config.seed, rows, config.data.workers)) as examples:
    if session.carry.iterator is not None:
      examples.set_state(session.carry.iterator)
    for index in range(int(state.step), settings.steps):
      batch = solutions(shop, next(examples))
      session.carry.iterator = examples.get_state()
      state, metrics = learner.update(state, batch)
      session.check_finite(bool(metrics.finite), config.optimizer.nonfinite_limit)
      row = {
        "stage": "warmstart",
        "nll": float(metrics.nll),
        "accuracy": float(metrics.accuracy),
        "gradient_norm": float(metrics.gradient_norm),
        "learned_tokens": int(metrics.learned_tokens),
        "skipped": "" if metrics.applied else "nonfinite",
      }
      tokens = int(hosts.gather((batch.segment >= 0).sum(1), shop.mesh).sum())
      last = index + 1 == settings.steps
      session.finish_step(index, state, row, tokens, last)
  return state


def solutions(shop: Workshop, examples: list[Example]) -> TrainBatch:
  """This process's rows: each example's prompt, then its worked solution as the target.

  Examples are packed into as many rows as they are, by themselves for each place of the data axis: what a row holds
  does not depend on the processes.
  """
  settings, text = shop.config.warmstart, shop.tokenizer
  documents = []
  for example in examples:
    prompt = text.prompt(example.context, example.question)
    # The answer stands behind a space, as it stands in the documents: the same tokens, so that it can be copied.
    documents.append((np.concatenate([prompt, text.response(example.reasoning, f" {example.answer}")]), len(prompt)))
  each = settings.rows // shop.mesh.shape["data"]
  packed = [
    packing.documents(documents[begin : begin + each], each, settings.row_slots, text.pad_id)[0]
    for begin in range(0, len(documents), each)
  ]
  batch: TrainBatch = jax.tree.map(lambda *parts: np.concatenate(parts), *packed)
  targets = batch.sample >= 0
  count = hosts.gather(targets.sum(1), shop.mesh).sum()
  return dataclasses.replace(batch, weight=np.where(targets, 1 / max(int(count), 1), 0).astype(np.float32))

"""Sampled rewards on held-out prompts, with intervals, and transcripts to read."""

import json
from functools import partial

import jax
import numpy as np
from jaxtyping import PyTree

from qwenlong_jax.data import loading
from qwenlong_jax.evaluation.metrics import summarize
from qwenlong_jax.files import write_text
from qwenlong_jax.parallelism import hosts
from qwenlong_jax.rl.learner import Learner
from qwenlong_jax.rollout.weights import for_decoding
from qwenlong_jax.stages import budget
from qwenlong_jax.stages.answering import Answered, answer, padded_rows
from qwenlong_jax.stages.setup import Workshop, data_folder, prompt_slots, sampling_of
from qwenlong_jax.types import TASKS

# Responses per task and prompt length whose text is kept.
TRANSCRIPTS = 4


def run(shop: Workshop, learner: Learner, params: PyTree, *, name: str, step: int, number: int) -> None:
  """Samples and scores every held-out prompt once, unless this evaluation is on disk already."""
  folder = shop.workdir / "evaluation"
  path = folder / f"{number:02d}-{name}.json"
  if hosts.first(path.exists):
    return
  settings = shop.config.evaluation
  weights = for_decoding(params, shop.mesh, shop.dtype)
  sampling = sampling_of(shop, settings.response_tokens)
  # The same noise at every evaluation: differences between two of them are then of the policies.
  key = jax.random.fold_in(jax.random.key(shop.config.seed), 2**31 - 1)
  rewards: dict[str, list[np.ndarray]] = {task: [] for task in TASKS}
  transcripts: list[dict] = []
  for prompt_tokens in settings.prompt_tokens:
    count = settings.prompts // len(settings.prompt_tokens)
    examples = loading.read_all(data_folder(shop, settings.split, prompt_tokens, count))
    slots = prompt_slots(shop, prompt_tokens)
    rows = padded_rows(shop, count)
    engine = budget.sampler(shop, learner, rows, slots, group=settings.group, sampling=sampling)
    for batch in answer(
      shop,
      engine,
      jax.random.fold_in(key, prompt_tokens),
      weights,
      examples,
      size=count,
      slots=slots,
      group=settings.group,
      sampling=sampling,
      what=f"evaluation {name}",
    ):
      for example, group in zip(batch.examples, batch.rewards(shop)):
        rewards[example.task].append(group)
      transcripts += kept(shop, batch)
  summary = {"name": name, "stage": name, "step": step, **summarize({task: np.stack(r) for task, r in rewards.items()})}
  lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in transcripts)
  hosts.first(partial(write_text, path.with_suffix(".transcripts.jsonl"), lines))
  hosts.first(partial(write_text, path, json.dumps(summary) + "\n"))
  overall = summary["overall"]
  hosts.say(
    f"evaluation {name}: reward {overall['mean']:.3f} [{overall['low']:.3f} {overall['high']:.3f}]  "
    + "  ".join(f"{task} {entry['mean']:.2f}" for task, entry in summary["tasks"].items())
  )


def kept(shop: Workshop, batch: Answered) -> list[dict]:
  """Transcripts of the first examples of a batch, on all processes."""
  count = min(TRANSCRIPTS, len(batch.examples))
  mine = np.full(len(batch.own), None)
  for place in np.flatnonzero(batch.rows < count):
    mine[place] = transcript(shop, batch, int(place))
  return list(hosts.gather(mine, shop.mesh)[:count])


def transcript(shop: Workshop, batch: Answered, place: int) -> dict:
  """The first response to an example of this process, to be read by a person."""
  example, sampled, score = batch.own[place], batch.sampled, batch.scores[place][0]
  tokens = np.asarray(sampled.tokens)[place, 0, : sampled.length[place, 0]]
  return {
    "id": example.id,
    "task": example.task,
    "context": example.context,
    "question": example.question,
    "response": shop.tokenizer.response_text(tokens),
    "answer": score.answer,
    "gold": example.answer,
    "reward": score.reward,
    "failure": score.failure,
  }

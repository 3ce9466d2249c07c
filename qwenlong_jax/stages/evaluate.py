"""Sampled rewards on held-out prompts, with intervals, and transcripts to read."""

import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from qwenlong_jax.data import loading
from qwenlong_jax.evaluation.metrics import summarize
from qwenlong_jax.parallelism import hosts
from qwenlong_jax.rl.learner import Learner
from qwenlong_jax.rollout.weights import for_decoding
from qwenlong_jax.stages import budget
from qwenlong_jax.stages.reinforce import rewards_of, score
from qwenlong_jax.stages.setup import Workshop, data_folder, on_devices, prompt_slots, sampling_of, tokenize
from qwenlong_jax.types import TASKS, Example, Rollout, Score

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
    rows = count + -count % shop.mesh.shape["data"]
    engine = budget.sampler(shop, learner, rows, slots, group=settings.group, sampling=sampling)
    for index in range(0, len(examples), count):
      chunk = examples[index : index + count]
      padded = chunk + chunk[:1] * (-len(chunk) % shop.mesh.shape["data"])
      mine = hosts.rows(shop.mesh, len(padded))
      own = [padded[row] for row in mine]
      sampled = engine.generate(
        weights,
        on_devices(shop, tokenize(shop, own, slots)),
        jax.random.fold_in(jax.random.fold_in(key, prompt_tokens), index),
        group=settings.group,
        sampling=sampling,
      )
      sampled = hosts.fetch(sampled, shop.mesh)
      scores = score(shop, own, sampled)
      kept = np.full(len(own), None)
      for n in range(int((mine < min(TRANSCRIPTS, len(chunk))).sum())):
        kept[n] = transcript(shop, own[n], sampled, scores, n)
      reward, kept = hosts.gather((rewards_of(scores), kept), shop.mesh)
      for example, group in zip(chunk, reward):
        rewards[example.task].append(group)
      transcripts += list(kept[: min(TRANSCRIPTS, len(chunk))])
  summary = {"name": name, "stage": name, "step": step, **summarize({task: np.stack(r) for task, r in rewards.items()})}
  lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in transcripts)
  hosts.first(partial(write, path.with_suffix(".transcripts.jsonl"), lines))
  hosts.first(partial(write, path, json.dumps(summary) + "\n"))
  overall = summary["overall"]
  hosts.say(
    f"evaluation {name}: reward {overall['mean']:.3f} [{overall['low']:.3f} {overall['high']:.3f}]  "
    + "  ".join(f"{task} {entry['mean']:.2f}" for task, entry in summary["tasks"].items())
  )


def transcript(shop: Workshop, example: Example, sampled: Rollout, scores: list[list[Score]], row: int) -> dict:
  """The first response to an example, to be read by a person."""
  score, tokens = scores[row][0], np.asarray(sampled.tokens)[row, 0, : sampled.length[row, 0]]
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


def write(path: Path, text: str) -> None:
  """All of the file or nothing."""
  path.parent.mkdir(exist_ok=True)
  temporary = path.with_name(path.name + ".partial")
  temporary.write_text(text, encoding="utf-8")
  temporary.replace(path)

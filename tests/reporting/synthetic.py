"""A made-up run for the tests of the report: every number here is invented."""

import json
from pathlib import Path

import numpy as np

from qwenlong_jax.evaluation.metrics import summarize
from qwenlong_jax.reporting import Reporter, StepMetrics
from qwenlong_jax.types import TASKS

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)> & </pre></details>'
CONFIG = {
  "name": "synthetic run",
  "seed": 7,
  "model": {"preset": "invented-4b", "layers": 4},
  "reinforce": {"prompts": 20, "group": 8, "learning_rate": 2e-6, "temperature": 0.7, "top_p": 0.95},
  "aepo": {"mode": "paper", "low": 0.1, "high": 0.3},
}


def write_run(
  folder: Path, warm: int = 40, stages: dict[str, int] | None = None, evaluations: bool = True, seed: int = 7
) -> Path:
  """Writes the files of a run of `warm` warm-start steps and the given reinforcement stages; returns the folder."""
  stages = {"rl-1": 70, "rl-2": 50} if stages is None else stages
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(CONFIG | {"seed": seed}))
  rng, total = np.random.default_rng(seed), warm + sum(stages.values())
  with Reporter(folder) as reporter:
    for step in range(warm):
      fall = np.exp(-step / 12)
      noise = rng.normal(0, 0.02)
      metrics = StepMetrics(
        "warmstart",
        step,
        nll=0.8 + 4 * fall + noise,
        accuracy=0.8 - 0.7 * fall + noise,
        loss=0.8 + 4 * fall,
        gradient_norm=float(0.4 + 3 * fall * rng.lognormal(0, 0.2)),
        learned_tokens=4096,
        compilations=int(step == 0),
      )
      reporter.write(metrics, seconds=0.9 + 0.1 * rng.random(), tokens=8192, total_steps=total)
    latch, entropy, step = 0, 0.18, warm
    for stage, count in stages.items():
      for index in range(count):
        entropy = max(0.02, entropy + (-0.012 if latch else 0.007) + rng.normal(0, 0.008))
        latch = 1 if entropy > 0.3 else 0 if entropy < 0.1 else latch
        reporter.write(_reinforced(stage, step, index, entropy, latch, rng), seconds=9 + rng.random(), tokens=30_000)
        step += 1
  if evaluations:
    _evaluate(folder, 0, "before", "warmstart", warm, 0.30, seed)
    for number, (stage, count) in enumerate(stages.items(), 1):
      warm += count
      _evaluate(folder, number, f"after-{stage}", stage, warm, 0.30 + 0.09 * number, seed)
  return folder


def _reinforced(stage: str, step: int, index: int, entropy: float, latch: int, rng: np.random.Generator) -> StepMetrics:
  level = 0.6 - 0.35 * np.exp(-step / 90)
  rewards = {task: float(np.clip(level + 0.08 * (i - 2) + rng.normal(0, 0.07), 0, 1)) for i, task in enumerate(TASKS)}
  broken = index == 20
  return StepMetrics(
    stage,
    step,
    reward=float("nan") if index == 33 else float(np.mean(list(rewards.values()))),
    reward_by_task=rewards,
    entropy=entropy,
    band_low=0.1,
    band_high=0.3,
    latch=latch,
    masked_samples=61 if latch else 0,
    response_length=float(400 + 2.5 * step + rng.normal(0, 25)),
    stopped_fraction=float(np.clip(0.97 - 0.0006 * step + rng.normal(0, 0.01), 0, 1)),
    zero_variance_groups=int(rng.poisson(4)),
    gap_mean=float(3e-4 * rng.lognormal(0, 0.2)),
    gap_max=float(2e-2 * rng.lognormal(0, 0.5)),
    loss=float(rng.normal(0, 0.01)),
    gradient_norm=float("nan") if broken else 0.0 if index == 45 else float(0.2 * rng.lognormal(0, 0.3)),
    learned_tokens=60_000,
    skipped="nonfinite" if broken else "nothing_to_learn" if index == 45 else "",
    prefill_tokens=40_000,
    compilations=2 if index == 0 else 0,
    failures={"no_thinking_end": int(rng.poisson(5)), "wrong_format": int(rng.poisson(2)), "empty_answer": 1},
  )


def _evaluate(folder: Path, number: int, name: str, stage: str, step: int, level: float, seed: int) -> None:
  (folder / "evaluation").mkdir(exist_ok=True)
  rng = np.random.default_rng(seed)
  rewards = {task: (rng.random((40, 4)) < level + 0.06 * (i - 2)).astype(float) for i, task in enumerate(TASKS)}
  body = {"name": name, "stage": stage, "step": step} | summarize(rewards)
  (folder / "evaluation" / f"{number:02d}-{name}.json").write_text(json.dumps(body))
  with open(folder / "evaluation" / f"{number:02d}-{name}.transcripts.jsonl", "w") as file:
    for index in range(20):
      right = bool(index % 3)
      row = {
        "id": f"invented-{index}",
        "task": TASKS[index % 5],
        "context": f"Document {index}. {HOSTILE}\n" + "The harbour records mention many ships. " * 200,
        "question": f"How many ships left the harbour of document {index}? {HOSTILE if index == 0 else ''}",
        "response": f"<think>\nI count the ships {HOSTILE} in the list.\n</think>\n\nThe answer is {index}.",
        "answer": str(index) if right else "",
        "gold": str(index),
        "reward": float(right),
        "failure": "" if right else "no_answer",
      }
      file.write(json.dumps(row) + "\n")

"""Means of held-out rewards with bootstrap intervals: per task, overall, and before against after."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from qwenlong_jax.reporting.intervals import Interval, bootstrap, paired_difference, per_prompt

__all__ = ["Interval", "bootstrap", "paired_difference", "per_prompt", "summarize"]


def summarize(rewards: Mapping[str, ArrayLike], seed: int = 0) -> dict[str, Any]:
  """{"tasks", "overall"} of an evaluation file, from every task's rewards ([P] or [P G]).

  `overall` is over all prompts: a task with more of them weighs more.
  """
  tasks = {task: _entry(values, seed) for task, values in rewards.items()}
  return {"tasks": tasks, "overall": _entry(np.concatenate([per_prompt(values) for values in rewards.values()]), seed)}


def _entry(values: ArrayLike, seed: int) -> dict[str, Any]:
  return asdict(bootstrap(values, seed=seed)) | {"rewards": np.asarray(values, np.float64).tolist()}

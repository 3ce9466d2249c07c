"""Rewards to advantages: the task-specific estimator (eq. 7) and the ones it is compared with.

Letters: P prompts, G responses to each. Everything here is host-side float64, over the *global* batch: gather the
rewards of all hosts first.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

EPSILON = 1e-6  # added to every std (eq. 7)
MIN_STD = 1e-8  # below this a std is noise: the advantage is 0

Scope = Literal["task", "group", "batch", "mean"]
Reward = Float[np.ndarray, "P G"]
Task = Int[np.ndarray, "P"]
Valid = Bool[np.ndarray, "P G"]


def task_relative(reward: Reward, task: Task, valid: Valid, *, ddof: int = 1) -> Float[np.ndarray, "P G"]:
  """(reward - mean of its group) / (std of all rewards of its task + 1e-6), over valid samples only (eq. 7).

  The std counts the rewards of zero-variance groups too. Exactly 0 for an invalid sample, a group with fewer than two
  valid samples or with equal rewards, and a task with fewer than two valid samples or a std below 1e-8. `task` [P]
  holds any integers. Raises ValueError on shapes that disagree, a reward that is not finite, a ddof but 0 and 1.
  """
  reward, task, valid = _checked(reward, task, valid)
  difference = _from_group_mean(reward, valid)
  scale = np.zeros(len(task))
  for name in np.unique(task):
    mine = task == name
    scale[mine] = _inverse_std(reward[mine][valid[mine]], ddof)
  return difference * scale[:, None]


def group_relative(reward: Reward, task: Task, valid: Valid, *, ddof: int = 1) -> Float[np.ndarray, "P G"]:
  """GRPO (eq. 3): as `task_relative`, with the std of the sample's own group. `task` is not used."""
  reward, _, valid = _checked(reward, task, valid)
  scale = np.array([_inverse_std(r[v], ddof) for r, v in zip(reward, valid)])
  return _from_group_mean(reward, valid) * scale[:, None]


def batch_relative(reward: Reward, task: Task, valid: Valid, *, ddof: int = 1) -> Float[np.ndarray, "P G"]:
  """As `task_relative`, with the std of all rewards of the batch, whatever their task. `task` is not used."""
  reward, _, valid = _checked(reward, task, valid)
  return _from_group_mean(reward, valid) * _inverse_std(reward[valid], ddof)


def mean_only(reward: Reward, task: Task, valid: Valid, *, ddof: int = 1) -> Float[np.ndarray, "P G"]:
  """Dr. GRPO: reward - mean of its group, not scaled. `task` and `ddof` are not used."""
  reward, _, valid = _checked(reward, task, valid)
  return _from_group_mean(reward, valid)


def advantages(reward: Reward, task: Task, valid: Valid, scope: Scope, ddof: int) -> Float[np.ndarray, "P G"]:
  """The estimator whose std is taken over `scope`: "task" (eq. 7), "group" (eq. 3), "batch", or "mean" (no std)."""
  estimators = {"task": task_relative, "group": group_relative, "batch": batch_relative, "mean": mean_only}
  if scope not in estimators:
    raise ValueError(f"{scope=} is not an advantage estimator; choose one of {sorted(estimators)}")
  return estimators[scope](reward, task, valid, ddof=ddof)


def zero_variance_groups(reward: Reward, valid: Valid) -> Bool[np.ndarray, " P"]:
  """True where a group teaches nothing: fewer than two valid samples, or all its valid rewards equal (max == min)."""
  highest = np.max(np.where(valid, reward, -np.inf), axis=1, initial=-np.inf)
  lowest = np.min(np.where(valid, reward, np.inf), axis=1, initial=np.inf)
  return (np.sum(valid, axis=1) < 2) | (highest == lowest)


def _from_group_mean(reward: Reward, valid: Valid) -> Float[np.ndarray, "P G"]:
  mean = np.sum(reward, axis=1, keepdims=True) / np.maximum(np.sum(valid, axis=1, keepdims=True), 1)
  return np.where(valid & ~zero_variance_groups(reward, valid)[:, None], reward - mean, 0.0)


def _inverse_std(values: Float[np.ndarray, " n"], ddof: int) -> float:
  if ddof not in (0, 1):
    raise ValueError(f"{ddof=}: the std divides by n - ddof; give 0 or 1")
  if len(values) < 2 or values.max() == values.min():
    return 0.0
  std = float(np.std(values, ddof=ddof))
  return 0.0 if std < MIN_STD else 1.0 / (std + EPSILON)


def _checked(reward: Reward, task: Task, valid: Valid) -> tuple[Reward, Task, Valid]:
  """The three as float64 (0 where invalid), integers and bools, their shapes and values checked."""
  reward, task, valid = np.asarray(reward, np.float64), np.asarray(task), np.asarray(valid, bool)
  if reward.ndim != 2 or valid.shape != reward.shape or task.shape != reward.shape[:1]:
    raise ValueError(
      f"wanted reward [P G], task [P], valid [P G]; got {reward.shape}, {task.shape}, {valid.shape}: "
      "give every prompt one task, and every sample one reward and one flag"
    )
  broken = np.argwhere(valid & ~np.isfinite(reward))
  if len(broken):
    p, g = broken[0]
    raise ValueError(f"reward[{p}, {g}] = {reward[p, g]} is not finite; mark the sample invalid or score it 0")
  return np.where(valid, reward, 0.0), task, valid

"""Bootstrap intervals of a mean over prompts, and of the paired difference of two means.

Letters: P prompts, G samples of each. Samples of one prompt are not independent, so prompts are what is resampled.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

# Resampled means are drawn this many numbers at a time: 32 MB of indices, whatever P and `resamples` are.
BLOCK = 4_000_000


@dataclass(frozen=True)
class Interval:
  """A mean and its confidence interval [low, high]."""

  mean: float
  low: float
  high: float

  @property
  def excludes_zero(self) -> bool:
    return self.low > 0 or self.high < 0


def per_prompt(values: ArrayLike) -> Float[np.ndarray, " P"]:
  """The mean of every prompt's samples, from [P] (one sample each) or [P G]; a NaN is an error, never left out."""
  array = np.asarray(values, np.float64)
  if array.ndim not in (1, 2) or array.size == 0:
    raise ValueError(f"values of shape {array.shape}; wanted [P] or [P, G] with at least one prompt")
  if not np.isfinite(array).all():
    count = int((~np.isfinite(array)).sum())
    raise ValueError(f"{count} of {array.size} values are not finite; score a failed sample as 0 and count it")
  return array if array.ndim == 1 else array.mean(axis=1)


def bootstrap(values: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
  """The mean of `values` ([P] or [P G]) with its percentile interval over resampled prompts.

  The percentile interval is too narrow for a handful of prompts: by a factor of about sqrt((P - 1) / P).
  """
  if not 0 < confidence < 1:
    raise ValueError(f"{confidence=} must lie between 0 and 1; 0.95 is usual")
  means = per_prompt(values)
  rng, count = np.random.default_rng(seed), len(means)
  block = max(1, BLOCK // count)
  sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
  resampled = np.concatenate([means[rng.integers(count, size=(size, count))].mean(axis=1) for size in sizes])
  low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
  return Interval(float(means.mean()), float(low), float(high))


def paired_difference(
  before: ArrayLike, after: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
  """The mean of after - before over the same prompts in the same order; the numbers of samples may differ."""
  first, second = per_prompt(before), per_prompt(after)
  if len(first) != len(second):
    raise ValueError(f"{len(first)} prompts before and {len(second)} after; a paired difference needs the same prompts")
  return bootstrap(second - first, confidence, resamples, seed)

"""Adaptive entropy-controlled policy optimisation (section 4.4): a latch on the batch's entropy (eq. 11) that masks
negative samples while entropy is too high.

Letters: P prompts, G responses to each, B = P*G samples, R response slots.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

Mode = Literal["paper", "stateless_high", "readme"]


@dataclass(frozen=True)
class Band:
  """The entropies between which training is to stay, in nats."""

  low: float
  high: float

  def __post_init__(self) -> None:
    if not self.low < self.high:  # also refuses NaN
      raise ValueError(f"band low={self.low} must be below high={self.high}; swap them or widen the band")


def batch_entropy(token_entropy: Float[np.ndarray, "B R"], mask: Bool[np.ndarray, "B R"]) -> float:
  """Mean over sequences of the mean over each sequence's tokens (eq. 11), in nats.

  A sequence without tokens is not counted. NaN if no sequence has any, or if a counted token's entropy is NaN.
  """
  token_entropy, mask = np.asarray(token_entropy, np.float64), np.asarray(mask, bool)
  if token_entropy.ndim != 2 or token_entropy.shape != mask.shape:
    raise ValueError(f"wanted token_entropy and mask of one shape [B R]; got {token_entropy.shape} and {mask.shape}")
  return float(np.mean(means)) if len(means := sequence_means(token_entropy, mask)[mask.any(axis=1)]) else math.nan


def sequence_means(values: Float[np.ndarray, "... R"], mask: Bool[np.ndarray, "... R"]) -> Float[np.ndarray, "..."]:
  """Mean of each sequence's masked-in values; 0 for a sequence that has none."""
  return np.sum(np.where(mask, values, 0.0), axis=-1) / np.maximum(np.sum(mask, axis=-1), 1)


def latch(s: int, entropy: float, band: Band) -> tuple[int, bool]:
  """The latch after a batch of entropy H (nats), and whether H was NaN (to be reported).

  1 if H > high, 0 if H < low, else `s` as it was: at a bound, inside the band, and for a NaN. It acts on the batch
  whose entropy moved it. Raises ValueError if `s` is neither 0 nor 1.
  """
  if s not in (0, 1):
    raise ValueError(f"latch {s=} must be 0 or 1; training starts at 0")
  if entropy > band.high:
    return 1, False
  if entropy < band.low:
    return 0, False
  return int(s), math.isnan(entropy)


def keep(
  advantage: Float[np.ndarray, "P G"], s: int, entropy: float, band: Band, mode: Mode = "paper"
) -> Bool[np.ndarray, "P G"]:
  """False where a sample is masked out of this batch's objective.

  - "paper": A < 0 while the latch `s` (already moved by this batch's entropy H) is 1.
  - "stateless_high": A < 0 while H > high; the latch is not looked at.
  - "readme": every sample but those with A > 0 while low < H < high. This is the condition of the snippet in the README
    of QwenLong-L1.5 (github.com/Tongyi-Zhiwen/Qwen-Doc): it masks *inside* the band, the reverse of the report, and
    A = 0 too. The snippet also wants reward > 0, which A > 0 implies for rewards >= 0; it takes the masked samples out
    of the batch (`token_weights(drop=True)`) and cuts the rest to a multiple of its workers, which we do not.

  With a NaN entropy the two modes without a latch mask nothing.
  """
  advantage = np.asarray(advantage)
  if mode == "paper":
    return ~((advantage < 0) & bool(s))
  if mode == "stateless_high":
    return ~((advantage < 0) & (entropy > band.high))
  if mode == "readme":
    return (advantage > 0) | (not band.low < entropy < band.high)
  raise ValueError(f"{mode=} is not an AEPO mode; choose 'paper', 'stateless_high' or 'readme'")

"""Negative gradient clipping (eqs. 8, 9): the indicator I that silences tokens of negative samples by their entropy.

Letters: B samples, R response slots.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from qwenlong_jax.rl.aepo import sequence_means

Mode = Literal["none", "token_high", "token_low", "sequence_high", "sequence_low"]
MODES = ("none", "token_high", "token_low", "sequence_high", "sequence_low")


def indicator(
  advantage: Float[np.ndarray, " B"],
  token_entropy: Float[np.ndarray, "B R"],
  mask: Bool[np.ndarray, "B R"],
  mode: Mode,
  tau: float | None = None,
) -> Bool[np.ndarray, "B R"]:
  """I: False exactly where a response token is silenced, True elsewhere (slots outside `mask` included).

  Silenced are tokens of samples with A < 0 whose entropy is > tau ("token_high", eq. 8), or all tokens of such samples
  whose mean entropy is > tau ("sequence_high", eq. 9); "_low" is < tau (Table 4). Strict: at tau nothing is silenced,
  nor where the entropy is NaN. Entropies and tau in nats. Raises ValueError if a mode needs a tau and has none.
  """
  if mode not in MODES:
    raise ValueError(f"{mode=} is not a clipping mode; choose one of {MODES}")
  advantage, mask = np.asarray(advantage), np.asarray(mask, bool)
  token_entropy = np.asarray(token_entropy, np.float64)
  if token_entropy.ndim != 2 or mask.shape != token_entropy.shape or advantage.shape != mask.shape[:1]:
    raise ValueError(
      "wanted advantage [B], token_entropy [B R], mask [B R]; "
      f"got {advantage.shape}, {token_entropy.shape}, {mask.shape}"
    )
  if mode == "none":
    return np.ones(mask.shape, bool)
  if tau is None or np.isnan(tau):
    raise ValueError(f"clipping {mode=} needs a threshold in nats; got {tau=}")
  level, side = mode.split("_")
  entropy = token_entropy if level == "token" else sequence_means(token_entropy, mask)[:, None]
  beyond = entropy > tau if side == "high" else entropy < tau
  return ~((advantage < 0)[:, None] & beyond & mask)

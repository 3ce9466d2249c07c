"""The token-level policy gradient of eq. 4 as a plain sum: the weight of every token, and what a token contributes.

Letters: P prompts, G responses to each, R response slots. All normalisers live in the weights, so the gradient does not
depend on how the batch is cut into micro-batches, packed rows or devices.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Normalizer = Literal["group", "batch", "sequence"]


def token_weights(
  advantage: Float[np.ndarray, "P G"],
  indicator: Bool[np.ndarray, "P G R"],
  keep: Bool[np.ndarray, "P G"],
  mask: Bool[np.ndarray, "P G R"],
  normalizer: Normalizer = "group",
  drop: bool = False,
) -> Float[np.ndarray, "P G R"]:
  """The coefficients of the objective: J = sum of weight * ratio over all slots of the *global* batch, float64.

  weight = I * A / normaliser where the sample is kept and the slot holds a response token, else 0:
  - "group" (eq. 4): prompts * response tokens of the sample's group;
  - "batch" (DAPO): response tokens of the batch;
  - "sequence" (GRPO): prompts * samples of the group * response tokens of the sample.

  Samples without response tokens, and prompts without such samples, are not counted. Tokens silenced by the indicator
  and tokens of samples that are not kept stay in every normaliser; with `drop` the samples that are not kept leave
  them, as if they had never been in the batch. Raises ValueError on shapes that disagree or an unknown normaliser.
  """
  advantage, keep = np.asarray(advantage, np.float64), np.asarray(keep, bool)
  indicator, mask = np.asarray(indicator, bool), np.asarray(mask, bool)
  if mask.ndim != 3 or indicator.shape != mask.shape or not advantage.shape == keep.shape == mask.shape[:2]:
    raise ValueError(
      "wanted advantage [P G], indicator [P G R], keep [P G], mask [P G R]; "
      f"got {advantage.shape}, {indicator.shape}, {keep.shape}, {mask.shape}"
    )
  coefficient = sample_weights(advantage, keep, np.sum(mask, axis=-1), normalizer, drop)
  return np.where(indicator & mask, coefficient[..., None], 0.0)


def sample_weights(
  advantage: Float[np.ndarray, "P G"],
  keep: Bool[np.ndarray, "P G"],
  length: Int[np.ndarray, "P G"],
  normalizer: Normalizer = "group",
  drop: bool = False,
) -> Float[np.ndarray, "P G"]:
  """What `token_weights` gives a sample's tokens, those silenced aside; `length` counts its response tokens."""
  counted = np.where(keep, length, 0) if drop else length
  return np.where(keep, advantage, 0.0) / _normalizer(counted, normalizer)


def _normalizer(length: np.ndarray, normalizer: Normalizer) -> Float[np.ndarray, "P G"]:
  """What each sample's advantage is divided by; `length` [P G] holds the response tokens that count (never a 0 out)."""
  group = np.broadcast_to(np.sum(length, axis=1, keepdims=True), length.shape)
  prompts = np.sum(np.any(length > 0, axis=1))
  if normalizer == "group":
    divisor = prompts * group
  elif normalizer == "batch":
    divisor = np.full(length.shape, np.sum(length))
  elif normalizer == "sequence":
    divisor = prompts * np.sum(length > 0, axis=1, keepdims=True) * length
  else:
    raise ValueError(f"{normalizer=} is not a normaliser; choose 'group' (eq. 4), 'batch' or 'sequence'")
  return np.maximum(divisor, 1).astype(np.float64)


def surrogate(
  logprob: Float[Array, "..."],
  old_logprob: Float[Array, "..."],
  weight: Float[Array, "..."],
  clip_low: float | None = None,
  clip_high: float | None = None,
  truncate: float | None = None,
) -> Float[Array, "..."]:
  """Each token's contribution to the loss -J; differentiable in `logprob`. Sum it, never average it.

  - default, on-policy (eq. 4): -weight * rho, rho = exp(logprob - stop_gradient(logprob)); `old_logprob` is not used;
  - `clip_low` and/or `clip_high` (off-policy): rho = exp(logprob - old_logprob), and the smaller of weight * rho and
    weight * rho clipped to [1 - clip_low, 1 + clip_high]; a side that is None is open;
  - `truncate` (truncated importance sampling): the on-policy term times min(exp(logprob - old_logprob), truncate),
    a constant to the gradient, which corrects for a sampler that is not quite the trainer.

  A slot of weight 0 contributes exactly 0, value and gradient, whatever its log-probabilities hold. Raises ValueError
  if clipping and truncation are both asked for: each is a correction by the same ratio.
  """
  clipped = clip_low is not None or clip_high is not None
  if clipped and truncate is not None:
    raise ValueError(f"{clip_low=}, {clip_high=} and {truncate=} would correct by the same ratio twice; choose one")
  live = weight != 0
  logprob, old_logprob = jnp.where(live, logprob, 0.0), jnp.where(live, old_logprob, 0.0)
  if clipped:
    low = 0.0 if clip_low is None else 1.0 - clip_low
    high = jnp.inf if clip_high is None else 1.0 + clip_high
    # Beyond e^20 no bound is sensible any more, and an inf would turn the gradient of the other branch to NaN.
    ratio = jnp.exp(jnp.clip(logprob - old_logprob, -20.0, 20.0))
    return -jnp.minimum(weight * ratio, weight * jnp.clip(ratio, low, high))
  on_policy = -weight * jnp.exp(logprob - jax.lax.stop_gradient(logprob))
  if truncate is None:
    return on_policy
  return on_policy * jax.lax.stop_gradient(jnp.minimum(jnp.exp(logprob - old_logprob), truncate))

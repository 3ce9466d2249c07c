"""Rows for the learner: a prompt once with its G responses as branches, or whole documents for the warm start.

The last prompt token predicts the first token of every branch, which differ. So the shared prefix ends before it and
each branch begins with a copy of it: what every slot attends to is exactly what it would see in a row of its own.

Letters: P prompts, G responses to each, S prompt slots, R response slots, N rows of L slots.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from qwenlong_jax.types import Rollout, TrainBatch


def _empty(rows: int, slots: int, pad: int) -> TrainBatch:
  ints = lambda value: np.full((rows, slots), value, np.int32)  # noqa: E731
  floats = lambda: np.zeros((rows, slots), np.float32)  # noqa: E731
  return TrainBatch(
    tokens=ints(pad),
    segment=ints(-1),
    position=ints(0),
    target=ints(0),
    sample=ints(-1),
    weight=floats(),
    old_logprob=floats(),
  )


def most_slots(prompt_slots: int, response_slots: int, group: int) -> int:
  """Slots that hold any row of `shared_prefix`."""
  return prompt_slots - 1 + group * response_slots


def row_slots(used: int, most: int, shapes: int = 1) -> int:
  """Slots for rows of which the longest has `used`: one of `shapes` sizes up to `most`, since each compiles once."""
  return -(-most * max(1, -(-used * shapes // most)) // shapes)


def shared_prefix(rollout: Rollout, pad_id: int, slots: int | None = None) -> TrainBatch:
  """One row per prompt, [prompt but its last token][branch 1][branch 2]...; weights are still 0 (see `with_weights`).

  `rollout` holds numpy arrays. Rows have `slots`, None: as many as hold any lengths.

  Raises:
    ValueError: a row is longer.
  """
  p, g, r = rollout.tokens.shape
  s = rollout.prompts.tokens.shape[1]
  slots = most_slots(s, r, g) if slots is None else slots
  used = np.asarray(rollout.prompts.length) - 1 + rollout.length.sum(axis=1)
  if used.max() > slots:
    raise ValueError(f"row {used.argmax()} has {used.max()} tokens and {slots=}; give it `row_slots` of the longest")
  batch = _empty(p, slots, pad_id)
  prefix = np.asarray(rollout.prompts.length) - 1  # [P]
  inside = np.arange(s) < prefix[:, None]
  row, slot = np.nonzero(inside)
  batch.tokens[row, slot] = rollout.prompts.tokens[row, slot]
  batch.segment[row, slot] = 0
  batch.position[row, slot] = slot

  begin = prefix[:, None] + np.cumsum(rollout.length, axis=1) - rollout.length  # [P G]
  row, branch, t = np.nonzero(response_mask(rollout))
  slot = begin[row, branch] + t
  copy = rollout.prompts.tokens[np.arange(p), prefix][:, None, None]
  shifted = np.concatenate([np.broadcast_to(copy, (p, g, 1)), rollout.tokens[:, :, :-1]], axis=2)
  batch.tokens[row, slot] = shifted[row, branch, t]
  batch.segment[row, slot] = branch + 1
  batch.position[row, slot] = prefix[row] + t
  batch.target[row, slot] = rollout.tokens[row, branch, t]
  batch.sample[row, slot] = row * g + branch
  batch.old_logprob[row, slot] = rollout.logprob[row, branch, t]
  return batch if rollout.experts is None else replace(batch, experts=routed(rollout, batch))


def routed(rollout: Rollout, batch: TrainBatch) -> Int[np.ndarray, "N L M E"]:
  """The experts that were chosen for the token of each slot."""
  assert rollout.experts is not None and rollout.prompt_experts is not None
  prefix = np.asarray(rollout.prompts.length) - 1
  experts = np.zeros((*batch.tokens.shape, *rollout.experts.shape[3:]), rollout.experts.dtype)
  row, slot = np.nonzero(batch.segment == 0)
  experts[row, slot] = rollout.prompt_experts[row, batch.position[row, slot]]
  row, slot = np.nonzero(batch.segment > 0)
  branch, t = batch.segment[row, slot] - 1, batch.position[row, slot] - prefix[row]
  # A branch's first slot holds the last prompt token, the others the response's token before.
  first = (t == 0)[:, None, None]
  experts[row, slot] = np.where(
    first, rollout.prompt_experts[row, prefix[row]], rollout.experts[row, branch, np.maximum(t - 1, 0)]
  )
  return experts


def response_mask(rollout: Rollout) -> np.ndarray:
  """[P G R]: which slots hold sampled tokens, the stop token included."""
  return np.arange(rollout.tokens.shape[2]) < np.asarray(rollout.length)[:, :, None]


def slots_of(batch: TrainBatch, mask: np.ndarray) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
  """Where the tokens of `mask` [P G R] stand: (row, slot) in the batch, and (prompt, branch, token) in the rollout."""
  inside = np.nonzero(mask)
  # Both run over rows, then branches, then tokens in the same order.
  return np.nonzero(batch.sample >= 0), inside


def with_weights(batch: TrainBatch, weight: Float[np.ndarray, "P G R"], mask: np.ndarray) -> TrainBatch:
  """The batch with `weight` of every response token at its slot."""
  at, inside = slots_of(batch, mask)
  packed = np.zeros(batch.tokens.shape, np.float32)
  packed[at] = weight[inside]
  return replace(batch, weight=packed)


def unpack(batch: TrainBatch, values: Float[np.ndarray, "N L"], mask: np.ndarray) -> Float[np.ndarray, "P G R"]:
  """Per-slot values back to [P G R]; 0 past each response's end."""
  at, inside = slots_of(batch, mask)
  out = np.zeros(mask.shape, np.float32)
  out[inside] = np.asarray(values)[at]
  return out


def documents(
  texts: Sequence[tuple[Int[np.ndarray, " n"], int]], rows: int, slots: int, pad_id: int
) -> tuple[TrainBatch, int]:
  """Packs (tokens, length of the prompt) pairs first-fit into `rows` rows; returns the batch and how many went in.

  Each document is a segment of its own. Its tokens after the prompt are targets, of weight 1 / (all targets): with a
  ratio's gradient that is the gradient of the mean log-likelihood.

  Raises:
    ValueError: a document is longer than a row.
  """
  batch = _empty(rows, slots, pad_id)
  used, count = np.zeros(rows, int), np.zeros(rows, int)
  taken = 0
  for tokens, prompt in texts:
    n = len(tokens) - 1
    if n > slots:
      raise ValueError(f"a document of {n + 1} tokens does not fit a row of {slots}; raise warmstart.row_slots")
    row = int(np.argmax(used + n <= slots))
    if used[row] + n > slots:
      break
    at = slice(used[row], used[row] + n)
    count[row] += 1
    batch.tokens[row, at], batch.target[row, at] = tokens[:-1], tokens[1:]
    batch.segment[row, at], batch.position[row, at] = count[row], np.arange(n)
    batch.sample[row, at][prompt - 1 :] = taken
    used[row] += n
    taken += 1
  targets = batch.sample >= 0
  batch.weight[targets] = 1 / max(int(targets.sum()), 1)
  return batch, taken

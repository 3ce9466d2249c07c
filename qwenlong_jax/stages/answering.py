"""A policy's answers to examples, scored: what an evaluation and the choice of a stage's training examples share.

Letters: P prompts, p of them of this process, G responses to each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree
from tqdm import tqdm

from qwenlong_jax import rewards
from qwenlong_jax.parallelism import hosts
from qwenlong_jax.rollout.engine import Engine
from qwenlong_jax.rollout.sampling import Sampling
from qwenlong_jax.stages.setup import Workshop, on_devices, tokenize
from qwenlong_jax.types import Example, Rollout, Score


@dataclass(frozen=True)
class Answered:
  """The answers to `examples`; of this process are the prompts `own`, `rows` of the batch, with `sampled` and `scores`.

  Rows from len(examples) on are padding, the first example again.
  """

  examples: Sequence[Example]
  own: list[Example]
  rows: Int[np.ndarray, " p"]
  sampled: Rollout
  scores: list[list[Score]]

  def rewards(self, shop: Workshop) -> Float[np.ndarray, "P G"]:
    """Of all `examples`, on all processes."""
    gathered: Float[np.ndarray, "P G"] = hosts.gather(rewards_of(self.scores), shop.mesh)
    return gathered[: len(self.examples)]


def answer(
  shop: Workshop,
  engine: Engine,
  key: Key[Array, ""],
  weights: PyTree,
  examples: Sequence[Example],
  *,
  size: int,
  slots: int,
  group: int,
  sampling: Sampling,
  what: str,
  begin: int = 0,
) -> Iterator[Answered]:
  """Answers each of the examples from the `begin`-th on `group` times, `size` examples at once, prompts in `slots`.

  What is drawn for an example hangs on the key and its place among the examples, where `begin` divides by `size`.
  """
  rows = padded_rows(shop, size)
  with tqdm(
    total=len(examples), initial=begin, desc=what, dynamic_ncols=True, leave=False, disable=not hosts.is_first()
  ) as bar:
    for first in range(begin, len(examples), size):
      chunk = [examples[n] for n in range(first, min(first + size, len(examples)))]
      padded = [*chunk, *[chunk[0]] * (rows - len(chunk))]
      mine = hosts.rows(shop.mesh, rows)
      own = [padded[row] for row in mine]
      prompts = on_devices(shop, tokenize(shop, own, slots))
      sampled = engine.generate(weights, prompts, jax.random.fold_in(key, first), group=group, sampling=sampling)
      sampled = hosts.fetch(sampled, shop.mesh)
      yield Answered(chunk, own, mine, sampled, score(shop, own, sampled))
      bar.update(len(chunk))


def padded_rows(shop: Workshop, size: int) -> int:
  """Rows of a batch of `size` examples: as many more as it takes to divide over the data axis."""
  return size + -size % shop.mesh.shape["data"]


def score(shop: Workshop, examples: Sequence[Example], sampled: Rollout) -> list[list[Score]]:
  """Each response's score, [P][G]."""
  return [
    [
      rewards.score(example, shop.tokenizer.response_text(tokens[:length]))
      for tokens, length in zip(group_tokens, lengths, strict=True)
    ]
    for example, group_tokens, lengths in zip(examples, sampled.tokens, sampled.length, strict=True)
  ]


def rewards_of(scores: list[list[Score]]) -> Float[np.ndarray, "P G"]:
  return np.array([[one.reward for one in group] for group in scores])

"""The nouns that modules hand to each other; a shape per field.

Letters: P prompts, G responses to each, B = P*G samples, S prompt slots, R response slots, N packed rows of L slots.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

# Made on the host or on devices: what packing fills in and the sampler returns.
Array = jax.Array | np.ndarray

# The report's five task types (section 2.2), in the order in which batches rotate through them.
TASKS = ("multiple_choice", "multi_hop", "reading_comprehension", "dialogue_memory", "corpus_numeric")


@dataclass(frozen=True)
class Span:
  """A piece of evidence: characters [start, end) of an Example's context, which came from `document`."""

  document: str
  start: int
  end: int


@dataclass(frozen=True)
class Example:
  """One verifiable question over a long context.

  `reasoning` is a worked solution (without the answer) used only by the warm start; "" where there is none.
  `provenance` holds plain JSON values: source, generator, seed, split, world, facts used.
  """

  id: str
  task: str
  context: str
  question: str
  answer: str
  reasoning: str = ""
  evidence: tuple[Span, ...] = ()
  provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
  """The reward of one response and how it came about: the extracted answer, and why it failed ("" if it did not)."""

  reward: float
  answer: str
  failure: str = ""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prompts:
  """Tokenised prompts, left-aligned; slots at or past `length` hold the pad token."""

  tokens: Int[Array, "P S"]
  length: Int[Array, " P"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rollout:
  """G sampled responses to each of P prompts.

  `tokens` includes the stop token; slots at or past `length` hold the pad token. `logprob` is of the sampled token
  under the full softmax at the sampling temperature (top-p not applied), `entropy` that of the full softmax at the
  entropy's temperature (eq. 11; the sampling one by default), both in nats; 0 past `length`. `stopped` says that a stop
  token ended the response (False: the budget did). `prefill_tokens` counts prompt slots that the model really computed.
  `prompt_experts` and `experts`, if they were recorded: the E experts that each of the M layers of mixed experts chose
  for a token, when it went through the model (the last token of a response does not).
  """

  prompts: Prompts
  tokens: Int[Array, "P G R"]
  length: Int[Array, "P G"]
  logprob: Float[Array, "P G R"]
  entropy: Float[Array, "P G R"]
  stopped: Bool[Array, "P G"]
  prefill_tokens: Int[Array, ""]
  decode_steps: Int[Array, ""]
  prompt_experts: Int[Array, "P S M E"] | None = None
  experts: Int[Array, "P G R M E"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainBatch:
  """Packed rows for the learner: a prompt once, then its branches (or, for the warm start, whole documents).

  Attention between slots k and q of a row: (segment_k == segment_q or segment_k == 0) and position_k <= position_q,
  and neither is padding (segment -1). Segment 0 is the shared prefix, g >= 1 a branch or a document. Slots are in
  order: none attends to a later one.
  `target` is the token that a slot predicts and `sample` the sample (0..B-1) it belongs to, -1 where it predicts
  nothing. `weight` is the coefficient of the slot's ratio in the objective: indicator * advantage / normaliser (eq. 4),
  so that the objective is a plain sum over slots, however they are cut into micro-batches or devices.
  `old_logprob` is the sampler's log-probability of the target. `experts`, if given: those that the slot's token is to
  be routed to in each layer of mixed experts.
  """

  tokens: Int[Array, "N L"]
  segment: Int[Array, "N L"]
  position: Int[Array, "N L"]
  target: Int[Array, "N L"]
  sample: Int[Array, "N L"]
  weight: Float[Array, "N L"]
  old_logprob: Float[Array, "N L"]
  experts: Int[Array, "N L M E"] | None = None

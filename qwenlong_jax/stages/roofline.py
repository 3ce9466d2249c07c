"""How long the phases of a step take at least, and what bounds each: arithmetic, memory, links, or waits for a hop.

All numbers are of one device and of the worst one. Weights, caches, and what travels are counted; activations are not:
in training they are below the arithmetic, in decoding they are few.

Letters: W groups (lanes) that a ring decodes at once, G responses to each.
"""

from dataclasses import dataclass

from qwenlong_jax.models import costs
from qwenlong_jax.models.presets import Qwen3Config
from qwenlong_jax.parallelism.chips import HOP, Chip

FLOAT, HALF = 4, 2  # bytes


@dataclass(frozen=True)
class Use:
  """What part of its peak each resource reaches. Assumed, not measured."""

  arithmetic: float = 0.5
  memory: float = 0.8
  links: float = 0.8

  def __post_init__(self) -> None:
    if not all(0 < part <= 1 for part in vars(self).values()):
      raise ValueError(f"{self} must be fractions above 0 and up to 1 of the peaks")


@dataclass(frozen=True)
class Load:
  """A batch: `prompts` groups of `group` responses, each as long as it may be; rows have `slots` for the learner."""

  prompts: int
  prompt: int
  response: int
  group: int
  slots: int
  lanes: int


@dataclass(frozen=True)
class Phase:
  """The work of a phase of a step."""

  name: str
  arithmetic: float  # FLOP
  memory: float  # bytes of HBM
  links: float  # bytes one way over one link; what uses both directions of a ring counts half
  hops: float  # waits for a neighbour that nothing hides

  def seconds(self, chip: Chip, use: Use) -> dict[str, float]:
    """By resource; "hops" come on top of the longest of the others."""
    return {
      "arithmetic": self.arithmetic / (chip.flops * use.arithmetic),
      "memory": self.memory / (chip.bandwidth * use.memory),
      "links": self.links / (chip.link * use.links),
      "hops": self.hops * HOP,
    }

  def total(self, chip: Chip, use: Use) -> float:
    """Seconds, if transfers and arithmetic hide each other but not the hops."""
    by = self.seconds(chip, use)
    return max(by["arithmetic"], by["memory"], by["links"]) + by["hops"]

  def bound(self, chip: Chip, use: Use) -> str:
    by = self.seconds(chip, use)
    return max(by, key=lambda name: by[name])


def phases(config: Qwen3Config, load: Load, data: int, ring: int, again: int) -> list[Phase]:
  """Of a step over `data` rings of `ring` devices, in their order; layers are recomputed `again` so many times."""
  return [
    relayout(config, data * ring, ring),
    prefill(config, load, data, ring),
    decode(config, load, data, ring),
    learn(config, load, data, ring, again),
  ]


def decode_weights(config: Qwen3Config, ring: int) -> int:
  """Bytes of the parameters that a device decodes with."""
  has = costs.parameters(config)
  cut = has.dense + has.experts + (has.head if config.vocab_size % ring == 0 else 0)
  return HALF * (has.total - cut + cut // ring)


def relayout(config: Qwen3Config, devices: int, ring: int) -> Phase:
  weights = decode_weights(config, ring)
  travels = weights / 2 if devices > 1 else 0
  return Phase("relayout", 0, FLOAT * costs.parameters(config).total / devices + weights, travels, 0)


def prefill(config: Qwen3Config, load: Load, data: int, ring: int) -> Phase:
  """Each of a ring's prompts in turn."""
  prompts, here = load.prompts / data, load.prompt / ring
  travels = 0.0
  if ring > 1:
    has, sparse = costs.parameters(config), config.layer_kinds.count("moe")
    token = config.hidden_size * (HALF + FLOAT) + 2 * FLOAT * config.num_experts_per_tok
    if here < config.num_experts // ring * config.moe_intermediate_size:  # as `models.moe.MoE` decides
      feed_forward = here * sparse * (ring * token + FLOAT * config.hidden_size)  # the sums also go home
    else:
      feed_forward = HALF * has.experts / 2
    travels = here * ring * costs.cache_bytes(config) + feed_forward + HALF * has.dense / 2
  return Phase(
    "prefill",
    prompts * costs.forward(config, load.prompt, costs.causal(load.prompt), 1) / ring,
    prompts * decode_weights(config, ring),
    prompts * travels,
    0,
  )


def decode(config: Qwen3Config, load: Load, data: int, ring: int) -> Phase:
  """As many steps as it takes until every group has had a lane, all as long as may be."""
  lanes = min(load.lanes, load.prompts // data)
  steps = -(-(load.prompts // data) // lanes) * load.response
  rows = lanes * load.group
  has, layers = costs.parameters(config), config.num_hidden_layers
  idle = has.embedding * (not config.tie_word_embeddings) + (1 - costs.experts_read(config, rows)) * has.experts / ring
  weights = decode_weights(config, ring) - HALF * idle
  cache = lanes * costs.cache_bytes(config) * (load.prompt + load.group * load.response / 2) / ring
  attended = load.prompt + load.response / 2
  flops = costs.forward(config, rows, int(rows * attended), rows) / ring
  travels, hops = 0.0, 0.0
  if ring > 1:
    heads = config.num_attention_heads * (config.head_dim + 1)
    travels = rows * FLOAT * (layers * (heads + config.hidden_size) + config.vocab_size / 2)
    hops = (3 * layers + 1) * ring
  return Phase("decode", steps * flops, steps * (weights + cache), steps * travels, steps * hops)


def learn(config: Qwen3Config, load: Load, data: int, ring: int, again: int) -> Phase:
  """Rows one after the other; the parameters of each layer are gathered whenever it is computed, gradients summed."""
  rows, devices = load.prompts / data, data * ring
  _, pairs = costs.shared_row(load.prompt, load.response, load.group)
  has = costs.parameters(config)
  gathered, scattered, passed = learn_traffic(config, load.slots // ring, ring, again)
  travels = (gathered + scattered) / 2 * (devices > 1) + passed
  memory = 2 * gathered + 2 * scattered + 2 * FLOAT * has.total / devices
  return Phase(
    "learn",
    rows * costs.gradient(config, load.slots, pairs, load.slots, again) / ring,
    rows * memory + 7 * FLOAT * has.total / devices,
    rows * travels,
    0,
  )


def learn_traffic(config: Qwen3Config, slots: int, ring: int, again: int) -> tuple[int, int, int]:
  """(gathered, scattered, passed on) bytes of a row of which this device has `slots`, were all of a parameter to come.

  The embedding is float32, all else is in the computation's type, of 2 bytes; gradients of keys and values travel in
  float32, those of the gathered parameters in the type that these had.
  """
  has = costs.parameters(config)
  final = config.hidden_size
  layers = HALF * (has.total - has.embedding - has.head - final)
  ends = FLOAT * has.embedding + HALF * (has.head or has.embedding) + FLOAT * final
  one = slots * costs.cache_bytes(config)
  passed = (ring * one + (ring + 1) * (one + one * FLOAT // HALF)) if ring > 1 else 0
  return layers * (1 + again) + ends, layers + ends, passed

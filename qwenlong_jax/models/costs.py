"""What a Qwen3 costs: parameters, arithmetic and caches, counted from its sizes.

A multiplication and its addition are two FLOP. Elementwise work, softmaxes and norms are left out: memory bounds them.
"""

from dataclasses import dataclass

from qwenlong_jax.models.presets import Qwen3Config


@dataclass(frozen=True)
class Parameters:
  """Numbers of parameters, of all layers together; a tied head is counted once, with the embedding."""

  projections: int  # of attention
  norms: int
  dense: int  # gate, up and down of layers without experts
  router: int
  experts: int  # gate, up and down of all experts
  chosen: int  # of those, by which a token is multiplied
  embedding: int
  head: int

  @property
  def total(self) -> int:
    return self.projections + self.norms + self.dense + self.router + self.experts + self.embedding + self.head

  @property
  def active(self) -> int:
    """All but the experts that a token is not routed to."""
    return self.total - self.experts + self.chosen

  @property
  def multiplied(self) -> int:
    """Those of the layers by which a token is multiplied."""
    return self.projections + self.dense + self.router + self.chosen


def parameters(config: Qwen3Config) -> Parameters:
  d, a, layers = config.hidden_size, config.head_dim, config.num_hidden_layers
  sparse = config.layer_kinds.count("moe")
  expert = 3 * d * config.moe_intermediate_size
  return Parameters(
    projections=layers * 2 * d * a * (config.num_attention_heads + config.num_key_value_heads),
    norms=layers * (2 * a + 2 * d) + d,
    dense=(layers - sparse) * 3 * d * config.intermediate_size,
    router=sparse * d * config.num_experts,
    experts=sparse * config.num_experts * expert,
    chosen=sparse * config.num_experts_per_tok * expert,
    embedding=config.vocab_size * d,
    head=0 if config.tie_word_embeddings else config.vocab_size * d,
  )


def forward(config: Qwen3Config, tokens: int, pairs: int, words: int) -> int:
  """FLOP of `tokens` through the layers with `pairs` of (query, key) that the mask shows, and logits of `words`."""
  heads = config.num_hidden_layers * config.num_attention_heads * config.head_dim
  logits = 2 * config.hidden_size * config.vocab_size * words
  return 2 * parameters(config).multiplied * tokens + 4 * heads * pairs + logits


def gradient(config: Qwen3Config, tokens: int, pairs: int, words: int, again: int) -> int:
  """FLOP of `forward`, of the backward pass, which is twice as much, and of what that computes again.

  Attention makes its scores again (5 products beside the forward pass's 2) and never its output, the head its logits;
  layers make all but attention `again` so many times (remat: 1).
  """
  layers, scores, logits = forward(config, tokens, 0, 0), forward(config, 0, pairs, 0), forward(config, 0, 0, words)
  return layers * (3 + again) + scores * 7 // 2 + logits * 4


def causal(length: int) -> int:
  """Pairs that a sequence shows to itself."""
  return length * (length + 1) // 2


def shared_row(prompt: int, response: int, group: int) -> tuple[int, int]:
  """(tokens, pairs) of a row with the prompt once; each branch begins with a copy of the last prompt token."""
  prefix = prompt - 1
  return prefix + group * response, causal(prefix) + group * (prefix * response + causal(response))


def repeated_rows(prompt: int, response: int, group: int) -> tuple[int, int]:
  """(tokens, pairs) of `group` rows that hold the prompt each."""
  length = prompt - 1 + response
  return group * length, group * causal(length)


def cache_bytes(config: Qwen3Config, itemsize: int = 2) -> int:
  """Keys and values of a token, in all layers."""
  return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * itemsize


def experts_read(config: Qwen3Config, tokens: int) -> float:
  """The part of a layer's experts that at least one of `tokens` is routed to, were all equally likely."""
  if not config.num_experts:
    return 1.0
  return 1 - (1 - config.num_experts_per_tok / config.num_experts) ** tokens

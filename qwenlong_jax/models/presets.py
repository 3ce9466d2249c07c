"""What a Qwen3 model is made of: read from and written to a Hugging Face config.json, and the sizes of known models."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Yarn:
  """Rotary frequencies stretched to `factor` times the window of pretraining (arXiv 2309.00071).

  `attention_factor` scales cos and sin; None derives it from `factor`, or from `mscale` and `mscale_all_dim` where both
  are given. Dimensions that turn more than `beta_fast` times in the original window keep their frequency, those that
  turn less than `beta_slow` times are interpolated. `truncate` rounds the bounds between them to whole dimensions.
  """

  factor: float
  original_max_position_embeddings: int
  attention_factor: float | None = None
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  mscale: float | None = None
  mscale_all_dim: float | None = None
  truncate: bool = True

  def __post_init__(self) -> None:
    for name in ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow"):
      if not getattr(self, name) > 0:
        raise ValueError(f"yarn {name}={getattr(self, name)!r} must be positive; correct it in rope_parameters")
    if self.factor < 1:
      raise ValueError(f"yarn factor={self.factor!r} would shrink the window; give a factor of at least 1")
    if self.beta_fast < self.beta_slow:
      raise ValueError(f"yarn beta_fast={self.beta_fast!r} is below beta_slow={self.beta_slow!r}; exchange them")

  @property
  def scale(self) -> float:
    """The factor on cos and sin, with the defaults resolved."""
    if self.attention_factor is not None:
      return self.attention_factor
    if self.mscale and self.mscale_all_dim:
      return self._growth(self.mscale) / self._growth(self.mscale_all_dim)
    return self._growth(1.0)

  def _growth(self, mscale: float) -> float:
    return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1.0


@dataclass(frozen=True)
class Qwen3Config:
  """Sizes and constants of a Qwen3 model; names are those of config.json. `num_experts` = 0 means no expert layer."""

  vocab_size: int
  hidden_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  head_dim: int
  intermediate_size: int
  rms_norm_eps: float = 1e-6
  rope_theta: float = 1e6
  rope_scaling: Yarn | None = None
  tie_word_embeddings: bool = False
  max_position_embeddings: int = 32768
  num_experts: int = 0
  num_experts_per_tok: int = 0
  moe_intermediate_size: int = 0
  norm_topk_prob: bool = True
  decoder_sparse_step: int = 1
  mlp_only_layers: tuple[int, ...] = ()
  initializer_range: float = 0.02
  bos_token_id: int | None = None
  eos_token_id: int | tuple[int, ...] | None = None
  pad_token_id: int | None = None

  def __post_init__(self) -> None:
    sizes = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"]
    sizes += ["max_position_embeddings", "decoder_sparse_step", "rms_norm_eps", "rope_theta"]
    kinds = self.layer_kinds if self.decoder_sparse_step > 0 else ()
    sizes += ["intermediate_size"] if "dense" in kinds else []
    sizes += ["num_experts_per_tok", "moe_intermediate_size"] if "moe" in kinds else []
    for name in sizes:
      if not getattr(self, name) > 0:
        raise ValueError(f"{name}={getattr(self, name)!r} must be positive")
    if self.num_attention_heads % self.num_key_value_heads:
      raise ValueError(
        f"num_attention_heads={self.num_attention_heads} must divide by num_key_value_heads="
        f"{self.num_key_value_heads}: every key-value head serves the same number of query heads"
      )
    if self.head_dim % 2:
      raise ValueError(f"head_dim={self.head_dim} must be even: rotary embeddings turn pairs of dimensions")
    if "moe" in kinds and self.num_experts_per_tok > self.num_experts:
      raise ValueError(f"num_experts_per_tok={self.num_experts_per_tok} exceeds num_experts={self.num_experts}")
    for layer in self.mlp_only_layers:
      if not 0 <= layer < self.num_hidden_layers:
        raise ValueError(f"mlp_only_layers names layer {layer}; the model has layers 0 to {self.num_hidden_layers - 1}")

  @property
  def layer_kinds(self) -> tuple[str, ...]:
    """The kind of each layer, "dense" or "moe"."""
    return tuple(
      "moe"
      if self.num_experts > 0 and layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0
      else "dense"
      for layer in range(self.num_hidden_layers)
    )


ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}

REQUIRED = (
  "vocab_size",
  "hidden_size",
  "num_hidden_layers",
  "num_attention_heads",
  "num_key_value_heads",
  "intermediate_size",
  "rms_norm_eps",
  "max_position_embeddings",
)
REQUIRED_MOE = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob")

# Keys whose absence or default means "off". Any other value asks for something that this model does not compute.
FIXED: dict[str, tuple[Any, ...]] = {
  "attention_bias": (False, None),
  "attention_dropout": (0.0, None),
  "hidden_act": ("silu", None),
  "partial_rotary_factor": (1.0, None),
  "quantization_config": (None,),
  "use_sliding_window": (False, None),
}
REMEDIES = {
  "attention_bias": "use a checkpoint without attention biases, as all of Qwen3 are",
  "attention_dropout": "set it to 0.0: this model has no dropout",
  "hidden_act": "only SwiGLU with silu is implemented",
  "partial_rotary_factor": "only full rotary embeddings are implemented",
  "quantization_config": "dequantise the checkpoint to bfloat16 first",
  "use_sliding_window": "set it to false: only full attention is implemented",
}

# Read for other purposes, or by other programs only: none of them changes what the model computes.
# fmt: off
HARMLESS = frozenset((
  "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "architectures",
  "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "experts_implementation",
  "finetuning_task", "id2label", "initializer_range", "is_encoder_decoder", "label2id", "max_window_layers",
  "model_type", "output_attentions", "output_hidden_states", "output_router_logits", "pad_token_id",
  "problem_type", "return_dict", "router_aux_loss_coef", "sliding_window", "task_specific_params",
  "tokenizer_class", "torch_dtype", "transformers_version", "unsloth_fixed", "unsloth_version", "use_cache",
))
READ = frozenset((
  *REQUIRED, *REQUIRED_MOE, *FIXED, "decoder_sparse_step", "head_dim", "layer_types", "mlp_only_layers",
  "num_local_experts", "rope_parameters", "rope_scaling", "rope_theta", "tie_word_embeddings",
))
# fmt: on

YARN_KEYS = frozenset(Yarn.__dataclass_fields__)
ROPE_KEYS = YARN_KEYS | {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


def from_hf(raw: Mapping[str, Any]) -> Qwen3Config:
  """Reads the contents of a config.json, in the style of transformers 4 (rope_theta) or 5 (rope_parameters).

  Raises ValueError, naming key and value, for whatever this model would compute differently from what is asked.
  """
  kind = raw.get("model_type")
  if kind not in ARCHITECTURES:
    raise ValueError(f"model_type={kind!r} is not supported; give a checkpoint of one of {sorted(ARCHITECTURES)}")
  values = dict(raw)
  if "num_local_experts" in raw:
    experts = raw["num_local_experts"]
    if raw.get("num_experts", experts) != experts:
      raise ValueError(f"num_experts={raw['num_experts']!r} contradicts num_local_experts={experts!r}; remove one")
    values["num_experts"] = experts
  _refuse(values)
  required = REQUIRED + (REQUIRED_MOE if kind == "qwen3_moe" else ())
  missing = [key for key in required if values.get(key) is None]
  if missing:
    raise ValueError(f"config.json of a {kind} model lacks {', '.join(missing)}; copy the original config.json")
  theta, yarn = _rope(values)
  eos = values.get("eos_token_id")
  fields = {key: values[key] for key in required}
  return Qwen3Config(
    **fields,
    head_dim=_head_dim(values),
    rope_theta=theta,
    rope_scaling=yarn,
    tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
    decoder_sparse_step=values.get("decoder_sparse_step", 1) if kind == "qwen3_moe" else 1,
    mlp_only_layers=tuple(values.get("mlp_only_layers") or ()) if kind == "qwen3_moe" else (),
    initializer_range=values.get("initializer_range", 0.02),
    bos_token_id=values.get("bos_token_id"),
    eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
    pad_token_id=values.get("pad_token_id"),
  )


def to_hf(config: Qwen3Config) -> dict[str, Any]:
  """The config.json of `config`, with the rotary keys of transformers 4 (from 4.51 on) and of transformers 5."""
  kind = "qwen3_moe" if config.num_experts else "qwen3"
  rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
  if config.rope_scaling:
    yarn = {key: getattr(config.rope_scaling, key) for key in sorted(YARN_KEYS)}
    rope = {"rope_type": "yarn", "rope_theta": config.rope_theta} | {k: v for k, v in yarn.items() if v is not None}
  eos = config.eos_token_id
  raw: dict[str, Any] = {
    "architectures": [ARCHITECTURES[kind]],
    "model_type": kind,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "use_sliding_window": False,
    **{key: getattr(config, key) for key in REQUIRED},
    "head_dim": config.head_dim,
    "initializer_range": config.initializer_range,
    "tie_word_embeddings": config.tie_word_embeddings,
    "rope_theta": config.rope_theta,
    "rope_scaling": rope if config.rope_scaling else None,
    "rope_parameters": rope,
    "bos_token_id": config.bos_token_id,
    "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
    "pad_token_id": config.pad_token_id,
  }
  if kind == "qwen3_moe":
    raw |= {key: getattr(config, key) for key in REQUIRED_MOE}
    raw |= {"decoder_sparse_step": config.decoder_sparse_step, "mlp_only_layers": list(config.mlp_only_layers)}
  return raw


def _refuse(values: Mapping[str, Any]) -> None:
  for key, allowed in FIXED.items():
    if key in values and values[key] not in allowed:
      raise ValueError(f"{key}={values[key]!r} is not supported: {REMEDIES[key]}")
  for layer, kind in enumerate(values.get("layer_types") or ()):
    if kind != "full_attention":
      raise ValueError(f"layer_types[{layer}]={kind!r} is not supported: only full_attention is implemented")
  unknown = sorted(set(values) - READ - HARMLESS)
  if unknown:
    raise ValueError(
      f"config.json has keys of unknown effect: {', '.join(f'{key}={values[key]!r}' for key in unknown)}; "
      "remove those that do not change the model, and use a plain Qwen3 checkpoint if one does"
    )


def _head_dim(values: Mapping[str, Any]) -> int:
  if values.get("head_dim") is not None:
    return values["head_dim"]
  if values["model_type"] == "qwen3":
    return 128  # transformers' default for the dense family; the MoE family divides instead
  if values["hidden_size"] % values["num_attention_heads"]:
    raise ValueError(
      f"hidden_size={values['hidden_size']} must divide by num_attention_heads={values['num_attention_heads']} "
      "where head_dim is not given; add head_dim"
    )
  return values["hidden_size"] // values["num_attention_heads"]


def _rope(values: Mapping[str, Any]) -> tuple[float, Yarn | None]:
  """Base and stretching of the rotary frequencies, from the old keys or the new one."""
  rope = dict(values.get("rope_scaling") or values.get("rope_parameters") or {})
  theta = rope.get("rope_theta", values.get("rope_theta"))
  if theta is None:
    raise ValueError("config.json lacks rope_theta (also in rope_parameters); copy the original config.json")
  if values.get("rope_theta", theta) != theta:
    raise ValueError(
      f"rope_theta={values['rope_theta']!r} contradicts rope_parameters.rope_theta={theta!r}; remove one"
    )
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind not in ("default", "yarn"):
    raise ValueError(f"rope_type={kind!r} is not supported; use default or yarn")
  if rope.get("partial_rotary_factor") not in FIXED["partial_rotary_factor"]:
    raise ValueError(
      f"partial_rotary_factor={rope['partial_rotary_factor']!r} is not supported: {REMEDIES['partial_rotary_factor']}"
    )
  unknown = sorted(set(rope) - (ROPE_KEYS if kind == "yarn" else ROPE_KEYS - YARN_KEYS))
  if unknown:
    raise ValueError(f"rope of type {kind} has keys of unknown effect: {unknown}; remove them")
  if kind == "default":
    return float(theta), None
  original = rope.get("original_max_position_embeddings") or values["max_position_embeddings"]
  given = {key: rope[key] for key in YARN_KEYS if rope.get(key) is not None}
  factor = given.get("factor", values["max_position_embeddings"] / original)
  return float(theta), Yarn(**(given | {"factor": factor, "original_max_position_embeddings": original}))


QWEN3 = {"vocab_size": 151936, "head_dim": 128, "bos_token_id": 151643, "eos_token_id": 151645}
LONG = {"max_position_embeddings": 262144}
MOE = {"num_experts": 128, "num_experts_per_tok": 8} | LONG

PRESETS: dict[str, Qwen3Config] = {}


def _preset(name: str, layers: int, width: int, heads: tuple[int, int], feed_forward: int, **rest: Any) -> None:
  PRESETS[name] = Qwen3Config(
    num_hidden_layers=layers,
    hidden_size=width,
    num_attention_heads=heads[0],
    num_key_value_heads=heads[1],
    intermediate_size=feed_forward,
    **({"max_position_embeddings": 40960} | QWEN3 | rest),
  )


_preset("qwen3-4b", 36, 2560, (32, 8), 9728, tie_word_embeddings=True)
_preset("qwen3-8b", 36, 4096, (32, 8), 12288)
_preset("qwen3-14b", 40, 5120, (40, 8), 17408)
_preset("qwen3-32b", 64, 5120, (64, 8), 25600)
_preset("qwen3-4b-thinking-2507", 36, 2560, (32, 8), 9728, tie_word_embeddings=True, rope_theta=5e6, **LONG)
_preset("qwen3-30b-a3b-thinking-2507", 48, 2048, (32, 4), 6144, moe_intermediate_size=768, rope_theta=1e7, **MOE)
_preset("qwen3-235b-a22b-thinking-2507", 94, 4096, (64, 4), 12288, moe_intermediate_size=1536, rope_theta=5e6, **MOE)
PRESETS["tiny"] = Qwen3Config(
  vocab_size=512,
  hidden_size=96,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=32,
  intermediate_size=128,
  rope_theta=1e4,
  tie_word_embeddings=True,
  max_position_embeddings=4096,
  num_experts=8,
  num_experts_per_tok=2,
  moe_intermediate_size=32,
  initializer_range=0.05,
)

"""Configurations against transformers' own reading of them."""

import dataclasses

import pytest
from transformers import AutoConfig, Qwen3Config, Qwen3MoeConfig

from qwenlong_jax.models.presets import PRESETS, Yarn, from_hf, to_hf

MOE = to_hf(PRESETS["qwen3-30b-a3b-thinking-2507"])
DENSE = to_hf(PRESETS["qwen3-4b"])
OLD = {key: value for key, value in MOE.items() if key != "rope_parameters"}
NEW = {key: value for key, value in MOE.items() if key not in ("rope_theta", "rope_scaling")}


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_goes_through_transformers_unchanged(name, tmp_path):
  config = PRESETS[name]
  kind = Qwen3MoeConfig if config.num_experts else Qwen3Config
  kind(**to_hf(config)).save_pretrained(tmp_path)
  assert from_hf(AutoConfig.from_pretrained(tmp_path).to_dict()) == config
  assert from_hf(to_hf(config)) == config


@pytest.mark.parametrize("yarn", [Yarn(4.0, 1024), Yarn(2.0, 512, 1.5, 16.0, 2.0, truncate=False)])
def test_yarn_goes_through_transformers_unchanged(yarn):
  config = dataclasses.replace(PRESETS["tiny"], rope_scaling=yarn, eos_token_id=(3, 4))
  assert from_hf(Qwen3MoeConfig(**to_hf(config)).to_dict()) == config


def test_rotary_keys_of_both_styles_read_the_same():
  yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 65536}
  assert from_hf(OLD) == from_hf(NEW) == PRESETS["qwen3-30b-a3b-thinking-2507"]
  old = from_hf(OLD | {"rope_scaling": yarn | {"type": "yarn"}})
  new = from_hf(NEW | {"rope_parameters": yarn | {"rope_theta": 1e7}})
  assert old == new and old.rope_scaling == Yarn(4.0, 65536)


def test_yarn_takes_the_original_window_and_factor_from_the_window_where_they_are_missing():
  assert from_hf(OLD | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}).rope_scaling == Yarn(2.0, 262144)
  scaling = {"rope_type": "yarn", "original_max_position_embeddings": 65536}
  assert from_hf(OLD | {"rope_scaling": scaling}).rope_scaling == Yarn(4.0, 65536)


def test_layers_are_of_the_kind_that_transformers_makes_them(tiny, hugging_face):
  config = tiny("moe", num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=(3,))
  assert config.layer_kinds == ("dense", "moe", "dense", "dense", "dense", "moe")
  theirs = ["moe" if hasattr(layer.mlp, "experts") else "dense" for layer in hugging_face(config).model.layers]
  assert tuple(theirs) == config.layer_kinds


def test_a_missing_head_dim_is_that_of_transformers():
  without = lambda raw: {key: value for key, value in raw.items() if key != "head_dim"}  # noqa: E731
  assert from_hf(without(DENSE) | {"hidden_size": 1024}).head_dim == Qwen3Config(hidden_size=1024).head_dim == 128
  assert from_hf(without(MOE)).head_dim == 2048 // 32
  with pytest.raises(ValueError, match="hidden_size=2050 must divide by num_attention_heads=32 where head_dim is not"):
    from_hf(without(MOE) | {"hidden_size": 2050})


@pytest.mark.parametrize(
  "change, message",
  [
    ({"model_type": "llama"}, r"model_type='llama' is not supported; give a checkpoint of one of"),
    ({"attention_bias": True}, r"attention_bias=True is not supported: use a checkpoint without"),
    ({"attention_dropout": 0.1}, r"attention_dropout=0.1 is not supported: set it to 0.0"),
    ({"hidden_act": "gelu"}, r"hidden_act='gelu' is not supported: only SwiGLU"),
    ({"use_sliding_window": True}, r"use_sliding_window=True is not supported: set it to false"),
    (
      {"layer_types": ["full_attention", "sliding_attention"]},
      r"layer_types\[1\]='sliding_attention' is not supported",
    ),
    ({"quantization_config": {"quant_method": "fp8"}}, r"quantization_config=.*: dequantise the checkpoint"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, r"rope_type='linear' is not supported; use default or"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, r"rope_type='dynamic' is not supported"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 0.5}}, r"factor=0.5 would shrink the window"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "wave": 1}}, r"yarn has keys of unknown effect: \['wave'\]"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 0.5}}, r"beta_fast=0.5 is below beta_slow=1.0"),
    ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor=0.5 is not supported: only full"),
    ({"rope_theta": 3.0}, r"rope_theta=3.0 contradicts rope_parameters.rope_theta=10000000.0"),
    ({"num_local_experts": 4}, r"num_experts=128 contradicts num_local_experts=4"),
    ({"num_attention_heads": 30}, r"num_attention_heads=30 must divide by num_key_value_heads=4"),
    ({"num_experts_per_tok": 129}, r"num_experts_per_tok=129 exceeds num_experts=128"),
    ({"head_dim": 63}, r"head_dim=63 must be even"),
    ({"hidden_size": 0}, r"hidden_size=0 must be positive"),
    ({"decoder_sparse_step": 0}, r"decoder_sparse_step=0 must be positive"),
    ({"mlp_only_layers": [48]}, r"mlp_only_layers names layer 48; the model has layers 0 to 47"),
    ({"vocab_size": None}, r"config.json of a qwen3_moe model lacks vocab_size"),
    ({"norm_topk_prob": None, "hidden_size": None}, r"lacks hidden_size, norm_topk_prob; copy the original"),
    ({"final_logit_softcapping": 30.0}, r"keys of unknown effect: final_logit_softcapping=30.0; remove"),
  ],
)
def test_what_would_be_computed_differently_is_refused_by_name(change, message):
  with pytest.raises(ValueError, match=message):
    from_hf(MOE | change)


def test_a_configuration_without_a_rotary_base_is_refused():
  with pytest.raises(ValueError, match="lacks rope_theta"):
    from_hf({key: value for key, value in OLD.items() if key != "rope_theta"})


def test_keys_of_other_programs_are_no_obstacle():
  raw = DENSE | {
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "max_window_layers": 36,
  }
  assert from_hf(raw | {"sliding_window": None, "_name_or_path": "x"}) == PRESETS["qwen3-4b"]

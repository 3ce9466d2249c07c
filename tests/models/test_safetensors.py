"""Checkpoints in and out: what transformers writes is read, what is written transformers reads, and nothing is lost."""

import itertools
import json
import struct
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qwenlong_jax.models import qwen3, safetensors
from qwenlong_jax.parallelism import rules
from qwenlong_jax.parallelism.mesh import make_mesh

TOKENS = np.arange(1, 21).reshape(2, 10)
KINDS = {
  "dense tied": ("dense", {"tie_word_embeddings": True}),
  "dense untied": ("dense", {"tie_word_embeddings": False}),
  "moe tied": ("moe", {"tie_word_embeddings": True}),
  "moe untied": ("moe", {"tie_word_embeddings": False}),
  "mixed": ("moe", {"tie_word_embeddings": False, "num_hidden_layers": 4, "mlp_only_layers": (1,)}),
}


@pytest.fixture(params=KINDS)
def config(request, tiny):
  kind, changes = KINDS[request.param]
  return tiny(kind, **changes)


@pytest.fixture
def untied(tiny):
  return tiny("moe", tie_word_embeddings=False)


def random_params(config, seed=0):
  random = np.random.default_rng(seed)
  abstract = nnx.state(nnx.eval_shape(lambda: qwen3.Qwen3(config, rngs=nnx.Rngs(0))))
  return jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape, scale=0.2), x.dtype), abstract)


def tensors_of(folder):
  """Every tensor of a folder as (dtype, bytes), read by the format's own library."""
  return {
    name: (tensor.dtype, tensor.shape, tensor.contiguous().view(torch.uint8).numpy().tobytes())
    for file in sorted(folder.glob("*.safetensors"))
    for name, tensor in load_file(file).items()
  }


def edited(folder, edit):
  """`folder`, its single file rewritten with what `edit` does to the dict of tensors."""
  tensors = load_file(folder / "model.safetensors")
  edit(tensors)
  save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
  return folder


def test_what_transformers_writes_gives_its_logits(untied, tmp_path, hugging_face, our_logits):
  model = hugging_face(untied)
  model.save_pretrained(tmp_path)
  assert (tmp_path / "model.safetensors").is_file()
  read = safetensors.read_config(tmp_path)
  assert read == untied
  with torch.no_grad():
    want = model(torch.tensor(TOKENS)).logits.numpy()
  np.testing.assert_allclose(our_logits(read, safetensors.load(tmp_path, read), TOKENS), want, atol=1e-4)


@pytest.mark.parametrize("config", ["dense tied", "mixed"], indirect=True)
def test_what_we_write_gives_our_logits_in_transformers(config, tmp_path, our_logits):
  params = random_params(config)
  safetensors.save(tmp_path / "out", config, params, jnp.float32, max_shard_bytes=20_000)
  model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
  with torch.no_grad():
    theirs = model(torch.tensor(TOKENS)).logits.numpy()
  np.testing.assert_allclose(theirs, our_logits(config, params, TOKENS), atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_import_then_export_keeps_every_byte(config, tmp_path, hugging_face, dtype):
  model = hugging_face(config).to(getattr(torch, dtype))
  model.save_pretrained(tmp_path / "in", max_shard_size="20KB")
  params = safetensors.load(tmp_path / "in", config, dtype=jnp.dtype(dtype))
  safetensors.save(tmp_path / "out", config, params, jnp.dtype(dtype), max_shard_bytes=30_000)
  assert tensors_of(tmp_path / "in") == tensors_of(tmp_path / "out")
  assert safetensors.read_config(tmp_path / "out") == config
  again = safetensors.load(tmp_path / "out", config, dtype=jnp.dtype(dtype))
  jax.tree.map(np.testing.assert_array_equal, params, again)


def test_fused_experts_are_read_like_single_ones(untied, tmp_path, hugging_face):
  model = hugging_face(untied)
  for name, whole in (("single", True), ("fused", False)):
    model.save_pretrained(tmp_path / name, save_original_format=whole)
  assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(tmp_path / "fused" / "model.safetensors")
  single, fused = (safetensors.load(tmp_path / name, untied) for name in ("single", "fused"))
  jax.tree.map(np.testing.assert_array_equal, single, fused)


def test_the_loaded_state_is_that_of_the_model(config, tmp_path):
  params = random_params(config)
  safetensors.save(tmp_path / "out", config, params, jnp.float32)
  loaded = safetensors.load(tmp_path / "out", config)
  assert jax.tree.structure(loaded) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_a_sharded_load_holds_the_same_values_where_it_was_told(untied, tmp_path):
  params = random_params(untied)
  safetensors.save(tmp_path / "out", untied, params, jnp.float32)
  mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))

  def sharding(x):
    axes = {4: [None, None, "b", "a"], 3: ["a", "b"]}.get(x.ndim, [])
    return NamedSharding(mesh, PartitionSpec(*axes))

  shardings = jax.tree.map(sharding, params)
  loaded = safetensors.load(tmp_path / "out", untied, shardings)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  assert jax.tree.map(lambda x: x.sharding, loaded) == shardings
  safetensors.save(tmp_path / "again", untied, loaded, jnp.float32)
  assert tensors_of(tmp_path / "again") == tensors_of(tmp_path / "out")


def test_shards_stay_within_the_limit_and_the_index_finds_every_tensor(untied, tmp_path):
  safetensors.save(tmp_path / "out", untied, random_params(untied), jnp.bfloat16, max_shard_bytes=9_000)
  files = sorted((tmp_path / "out").glob("*.safetensors"))
  index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
  assert len(files) > 5 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
  total = 0
  for file in files:
    tensors = load_file(file)
    assert {name for name, where in index["weight_map"].items() if where == file.name} == tensors.keys()
    total += (size := sum(tensor.nbytes for tensor in tensors.values()))
    assert size <= 9_000
  assert index["metadata"]["total_size"] == total


def test_a_tied_head_may_be_absent_or_equal_but_not_different(tiny, tmp_path):
  config = tiny("dense", tie_word_embeddings=True)
  folder = tmp_path / "out"
  safetensors.save(folder, config, random_params(config), jnp.float32)
  assert "lm_head.weight" not in load_file(folder / "model.safetensors")
  edited(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
  safetensors.load(folder, config)
  edited(folder, lambda tensors: tensors["lm_head.weight"].add_(1))
  with pytest.raises(ValueError, match=r"lm_head.weight differs from model.embed_tokens.weight .* set it to false"):
    safetensors.load(folder, config)


EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"


@pytest.mark.parametrize(
  "edit, message",
  [
    (lambda t: t.pop(EXPERT), rf"lacks: {EXPERT};"),
    (lambda t: t.pop("lm_head.weight"), r"lacks: lm_head.weight;"),
    (lambda t: t.update(extra=torch.zeros(1)), r"has beyond the configuration: extra; .* belong together"),
    (lambda t: t.update({EXPERT: t[EXPERT].T}), rf"{EXPERT} has shape \(32, 16\), the configuration wants \(16, 32\)"),
    (
      lambda t: t.update({EXPERT: t[EXPERT].to(torch.int8)}),
      rf"{EXPERT} is I8; dequantise it to one of F32, BF16, F16",
    ),
    (
      lambda t: [t.pop(name) for name in list(t) if "experts" in name],
      r"lacks: .*proj.weight and 45 more; config.json",
    ),
  ],
)
def test_a_tensor_that_does_not_fit_is_named(untied, tmp_path, edit, message):
  safetensors.save(tmp_path / "out", untied, random_params(untied))
  edited(tmp_path / "out", edit)
  with pytest.raises(ValueError, match=message):
    safetensors.load(tmp_path / "out", untied)


def test_a_misshapen_fused_tensor_is_named(untied, tmp_path, hugging_face):
  hugging_face(untied).save_pretrained(tmp_path, save_original_format=False)
  name = "model.layers.0.mlp.experts.gate_up_proj"
  edited(tmp_path, lambda tensors: tensors.update({name: tensors[name][:, 1:]}))
  with pytest.raises(ValueError, match=rf"{name} has shape \(8, 31, 32\), the configuration wants \(8, 32, 32\)"):
    safetensors.load(tmp_path, untied)


def test_files_that_are_not_all_there_are_named(untied, tmp_path):
  with pytest.raises(FileNotFoundError, match=r"holds neither model.safetensors.index.json nor model.safetensors"):
    safetensors.load(tmp_path, untied)
  folder = tmp_path / "out"
  safetensors.save(folder, untied, random_params(untied), max_shard_bytes=30_000)
  first, second = sorted(folder.glob("*.safetensors"))[:2]
  data = first.read_bytes()
  first.write_bytes(data[:-8])
  with pytest.raises(ValueError, match=f"{first.name} ends within tensor .*download it again"):
    safetensors.load(folder, untied)
  first.write_bytes(data[:100])
  with pytest.raises(ValueError, match=f"{first.name} ends within its header"):
    safetensors.load(folder, untied)
  first.write_bytes(second.read_bytes())
  with pytest.raises(ValueError, match=r"disagree about tensor .* copy both from the same checkpoint"):
    safetensors.load(folder, untied)
  first.unlink()
  with pytest.raises(FileNotFoundError, match=f"names {first.name}, which is not there; complete the download"):
    safetensors.load(folder, untied)


def test_nothing_is_written_over_and_nothing_is_left_of_a_failed_save(untied, tmp_path, monkeypatch):
  params = random_params(untied)
  safetensors.save(tmp_path / "out", untied, params)
  with pytest.raises(FileExistsError, match=r"out exists; remove it or choose another folder"):
    safetensors.save(tmp_path / "out", untied, params)
  monkeypatch.setattr(safetensors.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
  with pytest.raises(OSError, match="disk full"):
    safetensors.save(tmp_path / "second", untied, params)
  assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_parameters_that_are_not_the_models_are_named(untied, tiny, tmp_path):
  params = random_params(untied)
  tied = tiny("moe", tie_word_embeddings=True)
  with pytest.raises(ValueError, match="params have beyond the configuration head"):
    safetensors.save(tmp_path / "out", tied, params)
  with pytest.raises(ValueError, match="params lack head; give the state"):
    safetensors.save(tmp_path / "out", untied, random_params(tied))
  wide = random_params(tiny("moe", tie_word_embeddings=False, moe_intermediate_size=32))
  with pytest.raises(ValueError, match=r"runs.0.mlp.down has shape \(2, 8, 32, 32\), the configuration wants"):
    safetensors.save(tmp_path / "out", untied, wide)
  with pytest.raises(ValueError, match="dtype int32 is not supported; use bfloat16"):
    safetensors.save(tmp_path / "out", untied, params, jnp.int32)


class Counted(np.ndarray):
  """A mapped tensor that counts the bytes of what is taken from it."""

  taken = 0

  def __getitem__(self, index):
    part = np.asarray(self)[index]
    Counted.taken += part.nbytes
    return part


def test_a_device_reads_its_own_part_of_the_files_and_nothing_else(untied, tmp_path, monkeypatch):
  params = random_params(untied)
  safetensors.save(tmp_path / "out", untied, params, jnp.float32)
  plain = safetensors._map
  monkeypatch.setattr(
    safetensors, "_map", lambda path: {name: view.view(Counted) for name, view in plain(path).items()}
  )
  loaded = safetensors.load(tmp_path / "out", untied, rules.shardings(params, make_mesh()))
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  # Eight devices together take every byte once, so that those of a process take no others' bytes.
  assert Counted.taken == sum(x.nbytes for x in jax.tree.leaves(params))


LARGER = {"num_hidden_layers": 8, "num_experts": 16, "hidden_size": 128, "moe_intermediate_size": 64}


def test_the_host_holds_one_parameter_and_not_the_model(tiny, tmp_path, monkeypatch):
  config = tiny("moe", tie_word_embeddings=False, **LARGER)
  params = random_params(config)
  sizes = [x.nbytes for x in jax.tree.leaves(params)]
  largest, total = max(sizes), sum(sizes)
  assert total > 3 * largest
  # What jax keeps is the result itself; only what this module allocates on the way is counted.
  monkeypatch.setattr(safetensors.jnp, "asarray", lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype))
  safetensors.save(tmp_path / "warm", config, params, jnp.float32)
  tracemalloc.start()
  safetensors.save(tmp_path / "out", config, params, jnp.float32)
  saving = tracemalloc.get_traced_memory()[1]
  tracemalloc.reset_peak()
  safetensors.load(tmp_path / "out", config)
  loading = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert saving < largest, (saving, largest, total)
  assert loading < 2 * largest, (loading, largest, total)


def test_the_header_is_what_the_format_says(untied, tmp_path):
  safetensors.save(tmp_path / "out", untied, random_params(untied))
  data = (tmp_path / "out" / "model.safetensors").read_bytes()
  (length,) = struct.unpack("<Q", data[:8])
  header = json.loads(data[8 : 8 + length])
  assert length % 8 == 0 and header.pop("__metadata__") == {"format": "pt"}
  ends = sorted(tuple(entry["data_offsets"]) for entry in header.values())
  assert ends[0][0] == 0 and ends[-1][1] == len(data) - 8 - length
  assert all(before[1] == after[0] for before, after in itertools.pairwise(ends))

"""A Hugging Face folder of a Qwen3 made ready to be sampled from, on this process's devices."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from qwenlong_jax.models import safetensors, tokenizer
from qwenlong_jax.models.qwen3 import Qwen3
from qwenlong_jax.models.tokenizer import Tokenizer
from qwenlong_jax.parallelism import rules
from qwenlong_jax.rollout.engine import Engine

# What decides about a reply; a folder may hold more.
_FILES = ("config.json", "generation_config.json", "tokenizer*.json", "chat_template.jinja", "*.model", "*.safetensors")
_BLOCK, _BLOCKS = 4096, 1024  # of a file, so many bytes in so many places


@dataclass(frozen=True)
class Pretrained:
  """`identity` tells it by content from others; `window`: tokens of a prompt and its response that it was made for.

  `temperature` and `top_p` are what it wants to be sampled at: those of generation_config.json, else 0.7 and 0.95.
  """

  name: str
  identity: str
  tokenizer: Tokenizer
  engine: Engine
  params: PyTree
  window: int
  temperature: float
  top_p: float


def load(folder: str | Path, mesh: Mesh, dtype: jnp.dtype) -> Pretrained:
  """Reads config.json, the tokenizer and, as `dtype` and laid for decoding, the safetensors.

  Raises:
    FileNotFoundError: a file is not there.
    ValueError: a file that does not fit the others or is none of a Qwen3, or this process is one of several.
  """
  folder = Path(folder)
  if (count := jax.process_count()) > 1:
    raise ValueError(
      f"{folder} is to be sampled from by one of {count} processes; start a single one (on a TPU with --processes=1), "
      "or serve the model and give llm.url"
    )
  config, text = safetensors.read_config(folder), tokenizer.load(folder)
  if text.vocab_size > config.vocab_size:
    raise ValueError(f"{folder}: the tokenizer has {text.vocab_size} tokens, the model embeds {config.vocab_size}")
  abstract = nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0), dtype=dtype))
  graph, shapes = nnx.split(abstract)
  # Where the sampler reads them from the start: `weights.for_decoding` would have to hold them twice.
  places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), rules.decoding(shapes, mesh))
  usual = folder / "generation_config.json"
  said = json.loads(usual.read_text(encoding="utf-8")) if usual.is_file() else {}
  digest = fingerprint(folder)
  return Pretrained(
    name=f"{folder.resolve().name}@{digest[:12]}",
    identity=f"{digest} {jnp.dtype(dtype).name}",
    tokenizer=text,
    engine=Engine(graph, mesh),
    params=safetensors.load(folder, config, shardings=places, dtype=dtype),
    window=config.max_position_embeddings,
    temperature=said.get("temperature", 0.7),
    top_p=said.get("top_p", 0.95),
  )


def fingerprint(folder: Path) -> str:
  """A digest of the model's files by name, size and content: whole up to 4 MiB, beyond that of 1,024 blocks of each.

  Blocks of 4 KiB at equal distances: other weights differ in one of these two million, if they do at all.
  """
  digest = hashlib.sha256()
  for path in sorted(path for pattern in _FILES for path in folder.glob(pattern)):
    size = path.stat().st_size
    digest.update(f"{path.name}\0{size}\0".encode())
    with path.open("rb") as file:
      for place in range(0, size, max(_BLOCK, size // _BLOCKS)):
        file.seek(place)
        digest.update(file.read(_BLOCK))
  return digest.hexdigest()

"""What every stage works with, made from the config: tokenizer, tasks, model, mesh."""

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from qwenlong_jax.data import loading, sources, tasks
from qwenlong_jax.models import safetensors, tokenizer
from qwenlong_jax.models.induction import look_back
from qwenlong_jax.models.presets import PRESETS, Qwen3Config, from_hf
from qwenlong_jax.models.qwen3 import Qwen3
from qwenlong_jax.models.tokenizer import Tokenizer
from qwenlong_jax.parallelism import hosts
from qwenlong_jax.parallelism.mesh import make_mesh
from qwenlong_jax.rl.learner import Learner
from qwenlong_jax.types import TASKS, Example, Prompts


@dataclasses.dataclass(frozen=True)
class Workshop:
  """The parts that stages share."""

  config: ConfigDict
  workdir: Path
  tokenizer: Tokenizer
  model: Qwen3Config
  mesh: Mesh

  def create(self, key: jax.Array) -> Qwen3:
    """A model with random parameters."""
    settings = self.config.model
    model = Qwen3(self.model, rngs=nnx.Rngs(key), dtype=jnp.dtype(settings.dtype), remat=settings.remat)
    if settings.look_back:
      look_back(model)
    return model


def workshop(config: ConfigDict, workdir: Path) -> Workshop:
  """Reads or trains the tokenizer and settles the model's shape."""
  mesh = make_mesh(config.mesh.data, config.mesh.ring)
  hosts.check(mesh)
  text = get_tokenizer(config, workdir)
  if config.model.checkpoint:
    model = from_hf(json.loads((Path(config.model.checkpoint) / "config.json").read_text()))
    if text.vocab_size > model.vocab_size:
      raise ValueError(
        f"the tokenizer has {text.vocab_size} tokens, the checkpoint {config.model.checkpoint} embeds "
        f"{model.vocab_size}; set tokenizer.path to the checkpoint's own folder"
      )
  else:
    if config.model.preset not in PRESETS:
      raise ValueError(f"model.preset={config.model.preset!r} is not one of {sorted(PRESETS)}")
    model = dataclasses.replace(PRESETS[config.model.preset], vocab_size=text.vocab_size)
  return Workshop(config=config, workdir=workdir, tokenizer=text, model=model, mesh=mesh)


def get_tokenizer(config: ConfigDict, workdir: Path) -> Tokenizer:
  """The tokenizer of `tokenizer.path`, or a small BPE trained once on the tasks' texts and kept in the workdir."""
  if config.tokenizer.path:
    return tokenizer.load(config.tokenizer.path)
  hosts.first(partial(train_tokenizer, workdir, config.tokenizer.vocab_size))
  return tokenizer.load(workdir / "tokenizer")


def train_tokenizer(workdir: Path, vocab_size: int) -> None:
  """Writes the workdir's own tokenizer, unless it is there."""
  folder, unfinished = workdir / "tokenizer", workdir / "tokenizer.partial"
  if not folder.exists():
    shutil.rmtree(unfinished, ignore_errors=True)
    tokenizer.train(sources.texts("train"), unfinished, vocab_size)
    unfinished.rename(folder)


def data_folder(shop: Workshop, split: str, prompt_tokens: int, count: int) -> Path:
  """The shards of `count` examples per task with prompts of up to `prompt_tokens`, generated once.

  Only training sees worlds other than the real one.
  """
  worlds = shop.config.data.worlds if split == "train" else 1
  folder = shop.workdir / "data" / f"{split}-{prompt_tokens}-{count}-{worlds}"

  def generate() -> None:
    if folder.exists():
      return
    length = partial(token_count, shop.tokenizer)
    examples = [
      example
      for task in TASKS
      for example in tasks.generate(task, split, count, prompt_tokens, length, shop.config.seed, worlds)
    ]
    loading.write_shards(folder, examples, shop.config.data.shards)

  hosts.first(generate)
  return folder


def token_count(text_tokenizer: Tokenizer, text: str) -> int:
  return len(text_tokenizer.encode(text))


def prompt_slots(shop: Workshop, prompt_tokens: int) -> int:
  """Slots that hold a prompt of `prompt_tokens` and what the chat template and the joints of its parts add."""
  template = len(shop.tokenizer.prompt("a", "a"))
  return -(-(prompt_tokens + template + 4) // 8) * 8


def tokenize(shop: Workshop, examples: list[Example], slots: int) -> Prompts:
  """The examples' prompts, each in `slots` slots.

  Raises:
    ValueError: a prompt does not fit.
  """
  tokens = np.full((len(examples), slots), shop.tokenizer.pad_id, np.int32)
  length = np.zeros(len(examples), np.int32)
  for row, example in enumerate(examples):
    ids = shop.tokenizer.prompt(example.context, example.question)
    if len(ids) > slots:
      raise ValueError(
        f"the prompt of {example.id} has {len(ids)} tokens and {slots} slots; raise the stage's prompt_tokens"
      )
    tokens[row, : len(ids)], length[row] = ids, len(ids)
  return Prompts(tokens=tokens, length=length)


def on_devices(shop: Workshop, prompts: Prompts) -> Prompts:
  """All processes' prompts, as the engine takes them, from those of each."""
  return Prompts(tokens=hosts.put(prompts.tokens, shop.mesh), length=hosts.gather(prompts.length, shop.mesh))


def initial_parameters(shop: Workshop, learner: Learner) -> nnx.State:
  """Those of `model.checkpoint`, or random ones from the seed."""
  if shop.config.model.checkpoint:
    shardings = jax.tree.map(lambda x: x.sharding, learner.abstract_state().params)
    return safetensors.load(shop.config.model.checkpoint, shop.model, shardings=shardings)
  return learner.create_state(jax.random.key(shop.config.seed)).params

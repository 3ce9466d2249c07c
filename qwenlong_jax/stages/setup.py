"""What every stage works with, made from the config: tokenizer, tasks, model, mesh."""

import dataclasses
import shutil
from collections.abc import Callable
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
from qwenlong_jax.models.presets import PRESETS, Qwen3Config, Yarn
from qwenlong_jax.models.qwen3 import Qwen3
from qwenlong_jax.models.tokenizer import Tokenizer
from qwenlong_jax.parallelism import hosts
from qwenlong_jax.parallelism.mesh import make_mesh
from qwenlong_jax.rl.learner import Learner
from qwenlong_jax.rollout.sampling import Sampling
from qwenlong_jax.types import TASKS, Example, Prompts


@dataclasses.dataclass(frozen=True)
class Design:
  """What can be said of a run without its files."""

  config: ConfigDict
  model: Qwen3Config
  mesh: Mesh

  @property
  def dtype(self) -> jnp.dtype:
    """Of the computation; parameters are float32."""
    return jnp.dtype(self.config.model.dtype)

  def create(self, key: jax.Array) -> Qwen3:
    """A model with random parameters."""
    settings = self.config.model
    kept = {"remat": settings.remat, "offload": settings.offload, "together": settings.together}
    model = Qwen3(self.model, rngs=nnx.Rngs(key), dtype=self.dtype, **kept)
    if settings.look_back:
      look_back(model)
    return model


@dataclasses.dataclass(frozen=True)
class Workshop(Design):
  """The parts that stages share."""

  workdir: Path
  tokenizer: Tokenizer


def workshop(config: ConfigDict, workdir: Path) -> Workshop:
  """Reads or trains the tokenizer and settles the model's shape."""
  mesh = make_mesh(config.mesh.data, config.mesh.ring)
  hosts.check(mesh)
  text = get_tokenizer(config, workdir)
  model = model_of(config, text.vocab_size)
  if text.vocab_size > model.vocab_size:
    raise ValueError(
      f"the tokenizer has {text.vocab_size} tokens, the checkpoint {config.model.checkpoint} embeds "
      f"{model.vocab_size}; set tokenizer.path to the checkpoint's own folder"
    )
  return Workshop(config=config, workdir=workdir, tokenizer=text, model=model, mesh=mesh)


def model_of(config: ConfigDict, vocab_size: int | None = None) -> Qwen3Config:
  """The checkpoint's sizes, or those of the preset with a vocabulary of `vocab_size` (None: its own), and `model.yarn`.

  Raises:
    ValueError: an unknown preset, or a stage whose sequences are longer than the model's window.
  """
  settings = config.model
  if settings.checkpoint:
    model = safetensors.read_config(settings.checkpoint)
  elif settings.preset in PRESETS:
    preset = PRESETS[settings.preset]
    model = dataclasses.replace(preset, vocab_size=vocab_size or preset.vocab_size)
  else:
    raise ValueError(f"model.preset={settings.preset!r} is not one of {sorted(PRESETS)}")
  if settings.yarn:
    if model.rope_scaling is not None:
      raise ValueError(f"model.yarn={settings.yarn} but the checkpoint is stretched already; set model.yarn=0")
    window = model.max_position_embeddings
    model = dataclasses.replace(
      model, rope_scaling=Yarn(settings.yarn, window), max_position_embeddings=int(settings.yarn * window)
    )
  for name, stage in config.stages.items():
    length = stage.prompt_tokens + stage.response_tokens
    if length > model.max_position_embeddings:
      raise ValueError(
        f"stages.{name} has sequences of {length} tokens, the model a window of {model.max_position_embeddings}; "
        f"stretch it by model.yarn={-(-length // model.max_position_embeddings)}, or take shorter ones"
      )
  return model


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
  """The shards of `count` examples per task with prompts of up to `prompt_tokens`, made once.

  Those of `data.folder` that are short enough, or generated ones. Only training sees worlds other than the real one.
  """
  settings = shop.config.data
  worlds = settings.worlds if split == "train" else 1
  made_of = Path(settings.folder).name if settings.folder else worlds
  folder = shop.workdir / "data" / f"{split}-{prompt_tokens}-{count}-{made_of}"

  def make() -> None:
    if (folder / loading.MANIFEST).exists():
      return
    length = partial(token_count, shop.tokenizer)
    if settings.folder:
      examples = short_enough(Path(settings.folder) / split, prompt_tokens, count, length)
    else:
      examples = [
        example
        for task in TASKS
        for example in tasks.generate(task, split, count, prompt_tokens, length, shop.config.seed, worlds)
      ]
    loading.write_shards(folder, examples, settings.shards)

  hosts.first(make)
  return folder


def short_enough(folder: Path, prompt_tokens: int, count: int, length: Callable[[str], int]) -> list[Example]:
  """The first `count` examples of each task whose context and question are at most `prompt_tokens` long, in order.

  Raises:
    ValueError: a task has none.
  """
  kept: dict[str, list[Example]] = {task: [] for task in TASKS}
  for example in loading.read_all(folder):
    if len(kept[example.task]) < count and length(f"{example.context}\n\n{example.question}") <= prompt_tokens:
      kept[example.task].append(example)
  if missing := [task for task in TASKS if not kept[task]]:
    raise ValueError(
      f"{folder} holds no {', '.join(missing)} of at most {prompt_tokens} tokens; raise the stage's prompt_tokens, or "
      "synthesize shorter ones (synthesis.targets)"
    )
  return [example for task in TASKS for example in kept[task]]


def token_count(text_tokenizer: Tokenizer, text: str) -> int:
  return len(text_tokenizer.encode(text))


def prompt_slots(shop: Workshop, prompt_tokens: int) -> int:
  """Slots that hold a prompt of `prompt_tokens` and what the chat template and the joints of its parts add."""
  template = len(shop.tokenizer.prompt("a", "a"))
  return -(-(prompt_tokens + template + 4) // 8) * 8


def sampling_of(shop: Workshop, response_tokens: int) -> Sampling:
  settings = shop.config.sampling
  return Sampling(
    settings.temperature,
    settings.top_p,
    response_tokens,
    shop.tokenizer.stop_ids,
    shop.tokenizer.pad_id,
    shop.config.entropy.temperature,
  )


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

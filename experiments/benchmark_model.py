"""A whole model of random weights on one accelerator: prefill, decoding, and a learner's step, beside their rooflines.

  python experiments/benchmark_model.py                                    # Qwen3-30B-A3B; 70 GB for 120K tokens
  python experiments/benchmark_model.py --preset=qwen3-4b --learner=qwen3-4b
  python experiments/benchmark_model.py --preset=tiny --lengths=64 --decode=64 --learner=tiny --dtype=float32

Arithmetic is held against what a large bfloat16 product reaches here, memory against what a copy reaches, both measured
in the same run. Decoding: 8 branches over one prefix. `--transformers` times Hugging Face's model of the same sizes
after ours has gone (it needs torch with the accelerator, and memory for the prefix once for each branch).
"""

import gc
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx

from qwenlong_jax.kernels.prefix_decode import write_suffix
from qwenlong_jax.kernels.timing import matmul_rate, median
from qwenlong_jax.models import costs
from qwenlong_jax.models.presets import PRESETS, Qwen3Config, to_hf
from qwenlong_jax.models.qwen3 import Qwen3
from qwenlong_jax.parallelism.mesh import make_mesh
from qwenlong_jax.rl.learner import Learner
from qwenlong_jax.types import TrainBatch

PRESET = flags.DEFINE_string("preset", "qwen3-30b-a3b-thinking-2507", "of qwenlong_jax.models.presets")
LENGTHS = flags.DEFINE_list("lengths", ["8192", "32768", "131072"], "prompts of the prefill")
DECODE = flags.DEFINE_list("decode", ["32768", "122880"], "prefixes to decode over")
GROUP = flags.DEFINE_integer("group", 8, "branches")
TOKENS = flags.DEFINE_integer("tokens", 32, "that are decoded of each branch")
LEARNER = flags.DEFINE_string("learner", "qwen3-4b", "preset whose step is timed; empty: none")
SLOTS = flags.DEFINE_integer("slots", 8192, "of the learner's row, a prompt of half of them and 8 branches")
DTYPE = flags.DEFINE_string("dtype", "bfloat16", "of the weights")
SIZE = flags.DEFINE_integer("size", 8192, "of the product and, squared, of the copy that rooflines are measured with")
TRANSFORMERS = flags.DEFINE_bool("transformers", False, "time Hugging Face's model too")


def main(_: list[str]) -> None:
  config, dtype = PRESETS[PRESET.value], jnp.dtype(DTYPE.value)
  peak, bandwidth = matmul_rate(SIZE.value), copy_rate(SIZE.value)
  print(
    f"{jax.devices()[0].device_kind}: a product reaches {peak / 1e12:.3g} TFLOP/s, a copy {bandwidth / 1e9:.0f} GB/s"
  )
  create = lambda key: Qwen3(config, rngs=nnx.Rngs(key), dtype=dtype, param_dtype=dtype)  # noqa: E731
  graph, params = nnx.split(jax.jit(create)(jax.random.key(0)))
  for length in map(int, LENGTHS.value):
    seconds = prefill_seconds(graph, params, length)
    report("prefill", length, seconds, length, costs.forward(config, length, costs.causal(length), 1) / seconds / peak)
  for length in map(int, DECODE.value):
    seconds = decode_seconds(graph, params, config, length)
    share = bytes_of_a_step(config, length, dtype.itemsize) / seconds / bandwidth
    report("decode", length, seconds, GROUP.value, share)
  del params
  gc.collect()
  if LEARNER.value:
    model = PRESETS[LEARNER.value]
    seconds, prompt, response = learner_seconds(model, SLOTS.value)
    tokens, pairs = costs.shared_row(prompt, response, 8)
    share = costs.gradient(model, tokens, pairs, tokens, again=1) / seconds / peak
    report(f"learn {LEARNER.value}", SLOTS.value, seconds, tokens, share)
  if TRANSFORMERS.value:
    peer(config)


def report(phase: str, length: int, seconds: float, tokens: int, share: float) -> None:
  """`share` of the roofline: of the product's rate or, in decoding, of the copy's."""
  print(f"{phase:24} {length:8,} {1e3 * seconds:10.2f} ms {tokens / seconds:12,.0f} tokens/s {share:7.1%}", flush=True)


def copy_rate(size: int) -> float:
  """Bytes/s, read and written."""
  x = jnp.ones((size, size), jnp.float32)
  return 2 * x.nbytes / median(jax.jit(lambda x: x + 1), x)


def prefill_seconds(graph: nnx.GraphDef, params: nnx.State, length: int) -> float:
  @jax.jit
  def run(params: nnx.State, tokens: jax.Array) -> tuple:
    positions = jnp.arange(length, dtype=jnp.int32)[None]
    model = nnx.merge(graph, params)
    hidden, cache, _ = model.prefill(tokens, positions, jnp.ones_like(positions))
    return model.logits(hidden[:, -1]), cache

  tokens = jnp.zeros((1, length), jnp.int32)
  return median(lambda: run(params, tokens), runs=3)


def decode_seconds(graph: nnx.GraphDef, params: nnx.State, config: Qwen3Config, length: int) -> float:
  """Of a step, with suffixes that have grown to a few tokens."""
  group, steps, dtype = GROUP.value, TOKENS.value, jnp.dtype(DTYPE.value)
  layers, heads, width = config.num_hidden_layers, config.num_key_value_heads, config.head_dim

  @partial(jax.jit, static_argnums=2)
  def run(params: nnx.State, prefix: Any, steps: int) -> jax.Array:
    model = nnx.merge(graph, params)
    suffix = tuple(jnp.zeros((layers, 1, group, heads, TOKENS.value, width), dtype) for _ in range(2))

    def step(i: jax.Array, state: tuple) -> tuple:
      tokens, suffix = state
      count = jnp.full((1, group), i, jnp.int32)
      hidden, new, _ = model.decode(tokens, length + count, prefix, jnp.array([length], jnp.int32), suffix, count)
      return model.logits(hidden).argmax(-1).astype(jnp.int32), write_suffix(suffix, new, i)

    return jax.lax.fori_loop(0, steps, step, (jnp.zeros((1, group), jnp.int32), suffix))[0]

  prefix = tuple(jnp.zeros((layers, 1, heads, length, width), dtype) for _ in range(2))
  # What a run costs beside its steps is in both.
  many, one = (median(partial(run, params, prefix, n), runs=3) for n in (steps, 1))
  return (many - one) / (steps - 1)


def bytes_of_a_step(config: Qwen3Config, length: int, itemsize: int) -> float:
  """Weights, of experts those that are chosen, the prefix once, and each branch's suffix, which is half full."""
  has = costs.parameters(config)
  idle = has.embedding * (not config.tie_word_embeddings) + has.experts * (1 - costs.experts_read(config, GROUP.value))
  slots = length + GROUP.value * TOKENS.value / 2
  return itemsize * (has.total - idle) + slots * costs.cache_bytes(config, itemsize)


def learner_seconds(config: Qwen3Config, slots: int) -> tuple[float, int, int]:
  """(seconds of a step, tokens of the prompt and of each of its 8 responses), parameters and AdamW in float32."""
  create = lambda key: Qwen3(config, rngs=nnx.Rngs(key), dtype=jnp.dtype(DTYPE.value), remat=True)  # noqa: E731
  learner = Learner(create, optax.adamw(1e-6), make_mesh(1), temperature=0.7)
  state = learner.create_state(jax.random.key(0))
  response = slots // 2 // 8
  prompt = slots - 8 * response + 1
  segment = np.repeat(np.arange(9, dtype=np.int32), [prompt - 1, *[response] * 8])[None]
  position = np.concatenate([np.arange(prompt - 1), *[prompt - 1 + np.arange(response)] * 8])[None].astype(np.int32)
  tokens, weight = np.zeros_like(segment), np.where(segment > 0, 1.0, 0.0).astype(np.float32)
  batch = TrainBatch(tokens, segment, position, tokens, segment - 1, weight, 0 * weight)

  def run() -> object:
    nonlocal state
    state, metrics = learner.update(state, batch)
    return metrics

  return median(run, runs=3), prompt, response


def peer(config: Qwen3Config) -> None:
  """Prefill and decoding by transformers, in which every branch has its own copy of the prefix."""
  import torch
  from transformers import AutoConfig, AutoModelForCausalLM

  device = "cuda" if torch.cuda.is_available() else "cpu"
  settings = to_hf(config)
  with torch.device(device):
    model = AutoModelForCausalLM.from_config(
      AutoConfig.for_model(settings.pop("model_type"), **settings), dtype=getattr(torch, DTYPE.value)
    ).eval()

  def timed(run: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
      begun = time.perf_counter()
      run()
      if device == "cuda":
        torch.cuda.synchronize()
      times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])

  def generate(rows: int, length: int, tokens: int) -> object:
    prompts = torch.ones((rows, length), dtype=torch.long, device=device)
    return model.generate(
      prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
    )

  with torch.no_grad():
    for phase, lengths, rows in (("prefill", LENGTHS.value, 1), ("decode", DECODE.value, GROUP.value)):
      for length in map(int, lengths):
        try:
          seconds = timed(partial(generate, rows, length, 1))
          if phase == "decode":
            steps = TOKENS.value - 1
            seconds = (timed(partial(generate, rows, length, TOKENS.value)) - seconds) / steps
        except torch.OutOfMemoryError:
          print(f"transformers {phase:11} {length:8,} does not fit")
          torch.cuda.empty_cache()
          continue
        tokens = length if phase == "prefill" else rows
        print(f"transformers {phase:11} {length:8,} {1e3 * seconds:10.2f} ms {tokens / seconds:12,.0f} tokens/s")


if __name__ == "__main__":
  app.run(main)

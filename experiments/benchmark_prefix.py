"""What sharing a prompt among its responses saves, in learning and in sampling, beside repeating it in the same run.

  python experiments/benchmark_prefix.py
  python experiments/benchmark_prefix.py --prompt=1024 --response=64 --lengths=

A small Qwen3-MoE on whatever is at hand. Learning: a row with the prompt once and its responses as branches, beside a
row for each response; gradients are the same. Sampling: one prefill and one cache for a group, beside one for each
response. Then the cost of a token of learning over lengths of prompts, with a fit of its two parts: what every token
costs, and what every pair that attention shows costs.
"""

import dataclasses

import jax
import numpy as np
import optax
from absl import app, flags
from flax import nnx

from qwenlong_jax.kernels.timing import median
from qwenlong_jax.models import costs
from qwenlong_jax.models.presets import Qwen3Config
from qwenlong_jax.models.qwen3 import Qwen3
from qwenlong_jax.parallelism.mesh import make_mesh
from qwenlong_jax.rl import packing
from qwenlong_jax.rl.learner import Learner
from qwenlong_jax.rollout.engine import Engine
from qwenlong_jax.rollout.sampling import Sampling
from qwenlong_jax.types import Prompts, Rollout, TrainBatch

PROMPT = flags.DEFINE_integer("prompt", 4096, "tokens of a prompt")
RESPONSE = flags.DEFINE_integer("response", 256, "tokens of a response")
GROUP = flags.DEFINE_integer("group", 8, "responses to a prompt")
LENGTHS = flags.DEFINE_list("lengths", ["1024", "2048", "4096", "8192", "16384"], "prompts of the fit")
REPEATS = flags.DEFINE_integer("repeats", 3, "timed runs, of which the median counts")

MODEL = Qwen3Config(
  vocab_size=1024, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
  intermediate_size=0, num_experts=16, num_experts_per_tok=4, moe_intermediate_size=64, max_position_embeddings=32768,
)  # fmt: skip


def main(_: list[str]) -> None:
  learner = Learner(create, optax.adamw(1e-5), make_mesh(1), temperature=0.7)
  parameters = costs.parameters(MODEL)
  print(
    f"{parameters.total / 1e6:.1f}M parameters, {jax.devices()[0].device_kind}, {GROUP.value} responses to a prompt"
  )
  compare(learner, PROMPT.value, RESPONSE.value, GROUP.value)
  if LENGTHS.value:
    fit(learner, [int(length) for length in LENGTHS.value], RESPONSE.value, GROUP.value)


def create(key: jax.Array) -> Qwen3:
  return Qwen3(MODEL, rngs=nnx.Rngs(key), remat=True)


def compare(learner: Learner, prompt: int, response: int, group: int) -> None:
  """Prints seconds and memory with the prompt once and repeated, and their ratios."""
  sampled = invented(1, prompt, response, group)
  rows = {"shared": learnable(sampled), "repeated": learnable(alone(sampled))}
  norms, results = {}, {}
  for name, batch in rows.items():
    norms[name] = float(learner.update(learner.create_state(jax.random.key(0)), batch)[1].gradient_norm)
    results[name] = seconds_of(learner, batch), temporary(learner.traced(*batch.tokens.shape).lower())
  np.testing.assert_allclose(norms["shared"], norms["repeated"], rtol=1e-4)  # it is the same gradient
  print(f"\nlearning, {prompt} + {group} x {response} tokens")
  show(results, "s a step", "MB beside the state")

  params = learner.create_state(jax.random.key(0)).params
  engine, sampling = Engine(learner.graph, learner.mesh), Sampling(0.7, 0.95, response, (-1,), 0)
  results = {}
  for name, one, each in (("shared", sampled, group), ("repeated", alone(sampled), 1)):

    def run(one: Rollout = one, each: int = each) -> object:
      return engine.generate(params, one.prompts, jax.random.key(1), group=each, sampling=sampling)

    count = len(one.prompts.length)
    lowered = engine.lower(params, (count, prompt), group=each, sampling=sampling)
    results[name] = median(run, runs=REPEATS.value), temporary(lowered)
  print(f"\nsampling, {group} x {response} tokens after {prompt}")
  show(results, "s a group", "MB beside the weights")


def show(results: dict[str, tuple[float, int]], time_unit: str, memory_unit: str) -> None:
  for name, (seconds, memory) in results.items():
    print(f"  {name:9} {seconds:8.2f} {time_unit}  {memory / 2**20:9.1f} {memory_unit}")
  (fast, small), (slow, large) = results["shared"], results["repeated"]
  print(f"  repeated / shared: {slow / fast:.2f} times as long, {large / small:.2f} times the memory")


def fit(learner: Learner, lengths: list[int], response: int, group: int) -> None:
  """Prints the cost of a token of learning at each length, and the least-squares fit of its parts."""
  counts, seconds = [], []
  for length in lengths:
    counts.append(costs.shared_row(length, response, group))
    seconds.append(seconds_of(learner, learnable(invented(1, length, response, group))))
  tokens, pairs = np.array(counts, float).T
  # Each length counts alike, however long it takes: residuals relative to the time.
  parts = np.stack([tokens, pairs], 1) / np.array(seconds)[:, None]
  (token, pair), *_ = np.linalg.lstsq(parts, np.ones(len(lengths)), rcond=None)
  print(f"\na token of learning, us; fit: {1e6 * token:.1f} + {1e9 * pair:.2f} for 1,000 pairs that attention shows it")
  for length, n, shown, took in zip(lengths, tokens, pairs, seconds):
    each, attended = 1e6 * took / n, 1e6 * pair * shown / n
    print(f"  prompt {length:6,}: {each:7.1f}, without attention's part {each - attended:7.1f}")


def invented(prompts: int, prompt: int, response: int, group: int) -> Rollout:
  """Random tokens, as if sampled."""
  random = np.random.default_rng(0)
  draw = lambda *shape: np.asarray(random.integers(0, MODEL.vocab_size, shape), np.int32)  # noqa: E731
  shape = prompts, group, response
  return Rollout(
    prompts=Prompts(draw(prompts, prompt), np.full(prompts, prompt, np.int32)),
    tokens=draw(*shape),
    length=np.full(shape[:2], response, np.int32),
    logprob=np.zeros(shape, np.float32),
    entropy=np.zeros(shape, np.float32),
    stopped=np.ones(shape[:2], bool),
    prefill_tokens=np.array(prompts * prompt),
    decode_steps=np.array(response),
  )


def alone(sampled: Rollout) -> Rollout:
  """Every response as the only one to a prompt of its own."""
  group = sampled.tokens.shape[1]
  split = lambda x: x.reshape(-1, 1, *x.shape[2:])  # noqa: E731
  per_sample = {name: split(getattr(sampled, name)) for name in ("tokens", "length", "logprob", "entropy", "stopped")}
  prompts = Prompts(*(np.repeat(x, group, axis=0) for x in (sampled.prompts.tokens, sampled.prompts.length)))
  return dataclasses.replace(sampled, prompts=prompts, **per_sample)


def learnable(sampled: Rollout) -> TrainBatch:
  """Rows whose weights differ from token to token, the same for `alone`."""
  mask = packing.response_mask(sampled)
  weight = np.random.default_rng(1).normal(size=mask.size).reshape(mask.shape) / mask.size
  return packing.with_weights(packing.shared_prefix(sampled, 0), weight.astype(np.float32), mask)


def temporary(program: jax.stages.Lowered) -> int:
  """Bytes that the compiled program takes beside its arguments and results."""
  analysis = program.compile().memory_analysis()
  assert analysis is not None
  return analysis.temp_size_in_bytes


def seconds_of(learner: Learner, batch: TrainBatch) -> float:
  state = learner.create_state(jax.random.key(0))

  def run() -> object:
    nonlocal state
    state, metrics = learner.update(state, batch)
    return metrics

  return median(run, runs=REPEATS.value)


if __name__ == "__main__":
  app.run(main)

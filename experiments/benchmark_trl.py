"""One step of GRPO beside TRL's: the same tiny Qwen3-MoE, prompts, lengths and reward, in JAX and in PyTorch on a CPU.

  python experiments/benchmark_trl.py

The peer (TRL 1.16, torch 2.13 for the CPU) gets a virtual environment of its own, made on the first run (1 GB, minutes;
nothing but pip uses the network). Both sides read one Hugging Face folder of float32 weights and draw every token that
they are asked for. The peer runs without gradient checkpointing and in float32, which is faster here than its defaults
(--defaults keeps them). Then 2 minutes on two cores. Where the machine is shared, prefer CPU seconds to the clock.

Letters: P prompts, G responses to each, S prompt tokens, R response tokens.
"""

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Each side imports its own framework, inside its functions: neither environment has the other's.

PROMPTS, GROUP = 10, 8
TEMPERATURE, TOP_P, LEARNING_RATE = 0.7, 0.95, 3e-4
VOCABULARY, PAD, EOS = 209, 0, 1  # prompts hold neither PAD nor EOS
SETTINGS = ((80, 10), (1024, 32))  # (S, R)
REQUIREMENTS = (["torch==2.13.0"], ["trl==1.16.*", "transformers"])  # torch alone first: any other wording pulls CUDA
PACKAGES = ["torch", "transformers", "trl"]
VERSIONS = f"import importlib.metadata as m, json; print(json.dumps([m.version(name) for name in {PACKAGES}]))"


@dataclasses.dataclass(frozen=True)
class Cost:
  """Seconds of one step: on the clock, and of all threads and finished children on the cores."""

  wall: float
  cpu: float

  def __sub__(self, other: "Cost") -> "Cost":
    return Cost(self.wall - other.wall, self.cpu - other.cpu)


def now() -> Cost:
  usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return Cost(time.perf_counter(), sum(usage.ru_utime + usage.ru_stime for usage in usages))


def summary(costs: Sequence[Cost]) -> dict[str, float]:
  """Medians, and the least CPU seconds of a step: what other programs do to shared caches and cores only adds."""
  cpu = [cost.cpu for cost in costs]
  return {"wall": statistics.median(cost.wall for cost in costs), "cpu": statistics.median(cpu), "least cpu": min(cpu)}


def reward(tokens: Sequence[int]) -> float:
  """The share of even tokens: cheap, and never the same for a whole group."""
  return sum(int(token) % 2 == 0 for token in tokens) / len(tokens)


def ours(model: Path, prompts: np.ndarray, response: int, warmup: int) -> tuple[list[Cost], dict[str, list[Cost]]]:
  """(cost of each step after `warmup`, the same by phase) of the steps of `stages.reinforce`; `prompts` [steps P S]."""
  import jax
  import jax.numpy as jnp
  import optax
  from flax import nnx

  from qwenlong_jax.models import safetensors
  from qwenlong_jax.models.qwen3 import Qwen3
  from qwenlong_jax.parallelism.mesh import make_mesh
  from qwenlong_jax.rl import advantages, aepo, loss, packing
  from qwenlong_jax.rl.learner import Learner
  from qwenlong_jax.rollout.engine import Engine
  from qwenlong_jax.rollout.sampling import Sampling
  from qwenlong_jax.rollout.weights import for_decoding
  from qwenlong_jax.types import Prompts

  config = safetensors.read_config(model)
  learner = Learner(
    lambda key: Qwen3(config, rngs=nnx.Rngs(key)),
    optax.adamw(LEARNING_RATE, weight_decay=0.0),
    make_mesh(1),
    temperature=TEMPERATURE,
  )
  state = learner.state_of(safetensors.load(model, config))
  engine = Engine(learner.graph, learner.mesh)
  sampling = Sampling(TEMPERATURE, TOP_P, response, stop_ids=(-1,), pad_id=PAD)  # -1 is never drawn: none stops early
  length = jnp.full(PROMPTS, prompts.shape[2], jnp.int32)
  key, marks = jax.random.key(0), []

  for index, tokens in enumerate(prompts):
    marks.append([now()])
    weights = for_decoding(state.params, learner.mesh, jnp.float32)
    sampled = engine.generate(
      weights, Prompts(jnp.asarray(tokens), length), jax.random.fold_in(key, index), group=GROUP, sampling=sampling
    )
    sampled = jax.device_get(sampled)
    marks[-1].append(now())

    rewards = np.array([[reward(one) for one in group] for group in sampled.tokens.tolist()])
    valid = np.ones(rewards.shape, bool)
    advantage = advantages.advantages(rewards, np.zeros(PROMPTS, int), valid, "group", 1)
    mask = packing.response_mask(sampled)
    batch = packing.shared_prefix(sampled, PAD)
    marks[-1].append(now())

    assert np.isfinite(aepo.batch_entropy(sampled.entropy.reshape(-1, response), mask.reshape(-1, response)))
    weight = loss.token_weights(advantage, mask, valid, mask, "sequence")
    state, update = learner.update(state, packing.with_weights(batch, weight, mask))
    update = jax.device_get(update)
    marks[-1].append(now())
    assert update.applied

  marks = marks[warmup:]
  names = ("generate", "reward and packing", "update")
  phases = {name: [step[n + 1] - step[n] for step in marks] for n, name in enumerate(names)}
  return [step[-1] - step[0] for step in marks], phases


def our_logprobs(model: Path, prompt: np.ndarray) -> np.ndarray:
  """[V]: what follows `prompt` [S], for comparing the two models."""
  import jax
  import jax.numpy as jnp
  from flax import nnx

  from qwenlong_jax.models import safetensors
  from qwenlong_jax.models.qwen3 import Qwen3

  config = safetensors.read_config(model)
  qwen3 = Qwen3(config, rngs=nnx.Rngs(0))
  nnx.update(qwen3, safetensors.load(model, config))
  tokens = jnp.asarray(prompt)[None]
  hidden = qwen3(tokens, jnp.arange(len(prompt))[None], jnp.ones_like(tokens))
  return np.asarray(jax.nn.log_softmax(qwen3.logits(hidden[0, -1])))


def write_model(folder: Path) -> None:
  """A Qwen3-MoE of 138K random weights, as a Hugging Face folder."""
  import jax.numpy as jnp
  from flax import nnx

  from qwenlong_jax.models import safetensors
  from qwenlong_jax.models.presets import Qwen3Config
  from qwenlong_jax.models.qwen3 import Qwen3

  # Not a preset: presets change, and figures from before and after would not compare.
  config = Qwen3Config(
    vocab_size=VOCABULARY,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    intermediate_size=128,
    tie_word_embeddings=True,
    num_experts=8,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    initializer_range=0.1,
    eos_token_id=EOS,
    pad_token_id=PAD,
  )
  safetensors.save(folder, config, nnx.state(Qwen3(config, rngs=nnx.Rngs(0))), dtype=jnp.float32)


def random_prompts(steps: int, length: int) -> np.ndarray:
  """[steps P S], without PAD and EOS."""
  return np.random.default_rng(length).integers(2, VOCABULARY, (steps, PROMPTS, length), dtype=np.int32)


def theirs(
  model: Path, prompts: np.ndarray, response: int, warmup: int, defaults: bool
) -> tuple[list[Cost], np.ndarray]:
  """(cost of each of TRL's steps after `warmup`, log-probabilities [V] after the first prompt); in its environment.

  `defaults` leaves it gradient checkpointing and bfloat16.
  """
  import torch
  from datasets import Dataset
  from tokenizers import Tokenizer, models, pre_tokenizers
  from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
  from trl import GRPOConfig, GRPOTrainer

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  words = Tokenizer(models.WordLevel({f"<{n}>": n for n in range(VOCABULARY)}, unk_token=f"<{PAD}>"))
  words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=f"<{PAD}>", eos_token=f"<{EOS}>")
  texts = [" ".join(f"<{token}>" for token in prompt) for prompt in prompts.reshape(-1, prompts.shape[2])]
  assert tokenizer(texts[0])["input_ids"] == prompts[0, 0].tolist()
  network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
  with torch.no_grad():
    logprobs = network(torch.tensor(prompts[0, :1], dtype=torch.long)).logits[0, -1].log_softmax(0).numpy()

  def rewards(completion_ids: list[list[int]], **_: object) -> list[float]:
    assert [len(ids) for ids in completion_ids] == [response] * (PROMPTS * GROUP), "a response ended early"
    return [reward(ids) for ids in completion_ids]

  marks = [now()]

  class Clock(TrainerCallback):
    def on_step_end(self, *_: object, **__: object) -> None:
      marks.append(now())

  with tempfile.TemporaryDirectory() as folder:
    arguments = GRPOConfig(
      output_dir=folder,
      use_cpu=True,
      bf16=defaults,
      gradient_checkpointing=defaults,
      per_device_train_batch_size=PROMPTS * GROUP,
      gradient_accumulation_steps=1,
      steps_per_generation=1,
      num_generations=GROUP,
      max_completion_length=response,
      generation_kwargs={"min_new_tokens": response},
      temperature=TEMPERATURE,
      top_p=TOP_P,
      top_k=0,
      beta=0.0,
      loss_type="grpo",
      learning_rate=LEARNING_RATE,
      lr_scheduler_type="constant",
      max_grad_norm=0.0,
      max_steps=len(prompts),
      shuffle_dataset=False,
      save_strategy="no",
      report_to="none",
      disable_tqdm=True,
    )
    GRPOTrainer(
      model=network,
      reward_funcs=rewards,
      args=arguments,
      train_dataset=Dataset.from_dict({"prompt": texts}),
      processing_class=tokenizer,
      callbacks=[Clock()],
    ).train()
  assert len(marks) == len(prompts) + 1
  return [after - before for before, after in itertools.pairwise(marks)][warmup:], logprobs


def peer_environment(venv: Path) -> tuple[Path, list[str]]:
  """(the Python of `venv`, its versions of PACKAGES), installed where they are not there yet.

  Raises:
    RuntimeError: the environment cannot be made or does not hold what is wanted.
  """
  python = venv / "bin/python"
  commands = [[sys.executable, "-m", "venv", str(venv)]]
  commands += [[str(python), "-m", "pip", "install", "--quiet", *wanted] for wanted in REQUIREMENTS]
  if not (found := versions(python)):
    print(f"installing the peer in {venv} ...", file=sys.stderr, flush=True)
    for command in commands:
      done = subprocess.run(command, capture_output=True, text=True)
      if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise RuntimeError(
          f"no environment for TRL in {venv}: `{' '.join(command)}` failed with\n{said}\n"
          "Make it by hand with these commands and give its folder as --venv, or run with --alone"
        )
    found = versions(python)
  if not found or not found[0].startswith("2.13.0") or not found[2].startswith("1.16."):
    raise RuntimeError(
      f"{venv} holds {dict(zip(PACKAGES, found))}, wanted are {REQUIREMENTS}; give another folder as --venv"
    )
  return python, found


def versions(python: Path) -> list[str]:
  """Those of PACKAGES in an environment; [] where one is missing."""
  if not python.exists():
    return []
  done = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True)
  return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else []


def run_peer(python: Path, work: dict[str, Any]) -> tuple[list[Cost], np.ndarray]:
  """`theirs` on `work` (see `as_peer`), in a process of its environment.

  Raises:
    RuntimeError: it failed; with what it said.
  """
  # Nothing of this process' Python, and no look-ups on the network. On a shared machine OpenMP's threads would wait for
  # each other spinning, which trebles their CPU seconds: they sleep instead.
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  environment |= {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
  command = [str(python), str(Path(__file__).resolve()), "--as-peer", json.dumps(work)]
  done = subprocess.run(command, capture_output=True, text=True, env=environment)
  if done.returncode:
    raise RuntimeError(f"TRL failed at {work['lengths']} tokens:\n{done.stderr[-2000:]}")
  out = json.loads(done.stdout.splitlines()[-1])
  return [Cost(*cost) for cost in out["costs"]], np.array(out["logprobs"])


def as_peer(given: str) -> None:
  """The other end of `run_peer`: the last line printed is JSON."""
  work = json.loads(given)
  length, response = work["lengths"]
  prompts = random_prompts(work["warmup"] + work["steps"], length)
  costs, logprobs = theirs(Path(work["model"]), prompts, response, work["warmup"], work["defaults"])
  print(json.dumps({"costs": [dataclasses.astuple(cost) for cost in costs], "logprobs": logprobs.tolist()}))


def compare(python: Path | None, warmup: int, steps: int, defaults: bool) -> list[dict[str, Any]]:
  """A record for each of SETTINGS; without the peer where `python` is None."""
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    model = Path(folder) / "model"
    write_model(model)
    for lengths in SETTINGS:
      prompts = random_prompts(warmup + steps, lengths[0])
      print(f"{lengths[0]} + {lengths[1]} tokens: ours ...", file=sys.stderr, flush=True)
      costs, phases = ours(model, prompts, lengths[1], warmup)
      row: dict[str, Any] = {"prompt": lengths[0], "response": lengths[1], "ours": summary(costs)}
      row["phases"] = {name: summary(costs) for name, costs in phases.items()}
      row["load"] = [os.getloadavg()[0]]
      if python:
        print(f"{lengths[0]} + {lengths[1]} tokens: TRL ...", file=sys.stderr, flush=True)
        work = {"model": str(model), "lengths": lengths, "warmup": warmup, "steps": steps, "defaults": defaults}
        costs, logprobs = run_peer(python, work)
        difference = float(np.abs(our_logprobs(model, prompts[0, 0]) - logprobs).max())
        if difference > 1e-3:
          raise RuntimeError(f"the two sides do not hold one model: log-probabilities differ by {difference}")
        row["trl"] = summary(costs)
        row["ratio"] = {unit: row["trl"][unit] / row["ours"][unit] for unit in row["ours"]}
        row["difference"] = difference
        row["load"].append(os.getloadavg()[0])
      rows.append(row)
  return rows


def table(rows: list[dict[str, Any]]) -> str:
  """Medians per step: ours, TRL's, TRL's over ours; then ours by phase."""
  lines = ["| tokens | measure | ours | TRL | ratio |", "| --- | --- | --- | --- | --- |"]
  for row in rows:
    for unit in row["ours"]:
      peer = f"{row['trl'][unit]:.3f} s | {row['ratio'][unit]:.1f}" if "trl" in row else "not run |"
      lines.append(f"| {row['prompt']} + {row['response']} | {unit} | {row['ours'][unit]:.3f} s | {peer} |")
  lines += ["", "| ours, cpu | " + " | ".join(rows[0]["phases"]) + " |", "| --- |" + " --- |" * len(rows[0]["phases"])]
  for row in rows:
    cells = " | ".join(f"{cost['cpu']:.3f} s" for cost in row["phases"].values())
    lines.append(f"| {row['prompt']} + {row['response']} | {cells} |")
  return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
  parser.add_argument("--venv", type=Path, default=cache / "qwenlong_jax/trl", help="of the peer (%(default)s)")
  parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="for each side (%(default)s)")
  parser.add_argument("--warmup", type=int, default=2, help="steps not measured (%(default)s)")
  parser.add_argument("--steps", type=int, default=5, help="steps measured (%(default)s)")
  parser.add_argument("--alone", action="store_true", help="without the peer")
  parser.add_argument("--defaults", action="store_true", help="leave TRL its gradient checkpointing and bfloat16")
  parser.add_argument("--as-peer", help=argparse.SUPPRESS)
  given = parser.parse_args(arguments)
  if given.as_peer:
    as_peer(given.as_peer)
    return 0
  os.environ["JAX_PLATFORMS"] = "cpu"
  available = sorted(os.sched_getaffinity(0))
  if not 1 <= given.cores <= len(available) or given.warmup < 1 or given.steps < 1:
    parser.error(f"--cores={given.cores} must be 1 to {len(available)}, --warmup and --steps at least 1")
  # Both frameworks size their pools by the cores that the process may use; the peer inherits this.
  os.sched_setaffinity(0, available[: given.cores])
  try:
    python, found = (None, []) if given.alone else peer_environment(given.venv.expanduser().absolute())
    rows = compare(python, given.warmup, given.steps, given.defaults)
  except RuntimeError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  said = {
    "cores": given.cores,
    "steps": given.steps,
    "defaults": given.defaults,
    "python": platform.python_version(),
    **{name: importlib.metadata.version(name) for name in ("jax", "flax")},
    **dict(zip(PACKAGES, found)),
    "settings": rows,
  }
  print(f"Seconds per step, {PROMPTS} prompts x {GROUP} responses, {given.cores} cores, median of {given.steps}\n")
  print(f"{table(rows)}\n\n{json.dumps(said)}")
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))

"""Loading and saving a Hugging Face checkpoint at size: speed, and host memory beyond the parameters, beside peers.

  python experiments/benchmark_checkpoint.py                    # 3.7 GB: 30B-A3B with 2 layers
  python experiments/benchmark_checkpoint.py --folder=/dev/shm  # in memory: without the disk's speed

Writes random bfloat16 weights with the format's own library. Then, each in a process of its own: ours loads them onto 8
simulated CPU devices, cut as the learner cuts them, and saves them again; safetensors reads and writes them as they
are; transformers' `from_pretrained` and `save_pretrained` stack and cast them as ours do, and hold them once. What is
saved is compared with what was written, tensor by tensor and byte by byte.

Memory is anonymous memory (RssAnon in /proc/self/status, every few ms), at its peak, beyond what there was before and
the parameters that are kept: mapped files are not in it, the kernel takes their pages back when it needs them. Files
are read from the page cache where it holds them; ours alone waits until what it wrote is on the disk. Needs twice the
size in the folder and three times in memory.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
from absl import app, flags

from qwenlong_jax.models.presets import PRESETS, Qwen3Config, to_hf

# JAX, torch and transformers are imported where they are used: each process has one of them.

GIGABYTES = flags.DEFINE_float("gigabytes", 4.0, "of the checkpoint, about")
FOLDER = flags.DEFINE_string("folder", None, "for the checkpoints, which are removed at the end; default: a new one")
PEERS = flags.DEFINE_bool("peers", True, "measure the peers too")
PART = flags.DEFINE_string(
  "part", None, "used by the program itself: reader:dtype, of which this process is to measure"
)

SHARD = 10**9
MEASURED = ("ours:bfloat16", "ours:float32")
COMPARED = ("safetensors:bfloat16", "transformers:bfloat16", "transformers:float32")


@dataclasses.dataclass
class Cost:
  seconds: float = 0.0
  bytes: int = 0  # anonymous memory at its peak, beyond that at the start


def shaped(gigabytes: float) -> Qwen3Config:
  """30B-A3B with as many layers as fit; where not one does, with fewer words and experts too."""
  config = dataclasses.replace(PRESETS["qwen3-30b-a3b-thinking-2507"], num_hidden_layers=1)
  while size_of(config) > 1.1 * gigabytes * 10**9 and config.num_experts > 1:
    experts = config.num_experts // 2
    config = dataclasses.replace(
      config, vocab_size=config.vocab_size // 2, num_experts=experts, num_experts_per_tok=min(experts, 8)
    )
  layer = size_of(dataclasses.replace(config, num_hidden_layers=2)) - size_of(config)
  layers = 1 + max(0, round((gigabytes * 10**9 - size_of(config)) / layer))
  return dataclasses.replace(config, num_hidden_layers=layers)


def size_of(config: Qwen3Config) -> int:
  """Bytes of its bfloat16 weights."""
  return 2 * sum(int(np.prod(shape)) for _, shape in tensors_of(config))


def tensors_of(config: Qwen3Config) -> Iterator[tuple[str, tuple[int, ...]]]:
  """(name, shape) of each tensor of a Hugging Face Qwen3-MoE checkpoint, in its order."""
  d, f, v = config.hidden_size, config.moe_intermediate_size, config.vocab_size
  q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
  yield "model.embed_tokens.weight", (v, d)
  for layer in range(config.num_hidden_layers):
    stem = f"model.layers.{layer}"
    for name, shape in {"q": (q, d), "k": (kv, d), "v": (kv, d), "o": (d, q)}.items():
      yield f"{stem}.self_attn.{name}_proj.weight", shape
    for name in "qk":
      yield f"{stem}.self_attn.{name}_norm.weight", (config.head_dim,)
    yield f"{stem}.mlp.gate.weight", (config.num_experts, d)
    for expert in range(config.num_experts):
      for name, shape in {"gate": (f, d), "up": (f, d), "down": (d, f)}.items():
        yield f"{stem}.mlp.experts.{expert}.{name}_proj.weight", shape
    yield f"{stem}.input_layernorm.weight", (d,)
    yield f"{stem}.post_attention_layernorm.weight", (d,)
  yield "model.norm.weight", (d,)
  yield "lm_head.weight", (v, d)


def write(folder: Path, config: Qwen3Config) -> None:
  """A checkpoint of random bits, by safetensors, in files of about SHARD bytes."""
  from safetensors.numpy import save_file

  random = np.random.default_rng(0)
  folder.mkdir(parents=True)
  files: list[list[tuple[str, tuple[int, ...]]]] = [[]]
  used = 0
  for name, shape in tensors_of(config):
    if used > SHARD:
      files.append([])
      used = 0
    files[-1].append((name, shape))
    used += 2 * int(np.prod(shape))
  index: dict[str, str] = {}
  for number, tensors in enumerate(files, 1):
    file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
    save_file({name: random_weights(random, shape) for name, shape in tensors}, folder / file, {"format": "pt"})
    index |= {name: file for name, _ in tensors}
  listed = json.dumps({"metadata": {}, "weight_map": index})
  (folder / "model.safetensors.index.json").write_text(listed, encoding="utf-8")
  (folder / "config.json").write_text(json.dumps(to_hf(config) | {"dtype": "bfloat16"}), encoding="utf-8")


def random_weights(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  """Any sign and mantissa, exponents from -63 to 0: no NaN, nothing that a processor may flush to zero."""
  bits = random.integers(0, 1 << 16, shape, np.uint16)
  return ((bits & 0xBFFF) | 0x2000).view(ml_dtypes.bfloat16)


def same_tensors(folder: Path, other: Path) -> bool:
  """Whether two checkpoints hold the same tensors, to the byte."""
  from safetensors import safe_open

  def opened(folder: Path) -> dict:
    files = [safe_open(file, "numpy") for file in sorted(folder.glob("*.safetensors"))]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118

  one, two = opened(folder), opened(other)
  pairs = ((one[name].get_tensor(name), two[name].get_tensor(name)) for name in one if name in two)
  return one.keys() == two.keys() and all(
    a.dtype == b.dtype and np.array_equal(a.view(np.uint16), b.view(np.uint16)) for a, b in pairs
  )


@contextmanager
def measured() -> Iterator[Cost]:
  """Fills in the cost of its body when that ends."""
  cost, start, over, peak = Cost(), anonymous(), threading.Event(), [0]

  def watch() -> None:
    while not over.wait(0.003):
      peak[0] = max(peak[0], anonymous())

  watcher = threading.Thread(target=watch)
  watcher.start()
  clock = time.perf_counter()
  yield cost
  cost.seconds = time.perf_counter() - clock
  over.set()
  watcher.join()
  cost.bytes = max(peak[0], anonymous()) - start


def anonymous() -> int:
  """Bytes of this process that no file backs."""
  status = Path("/proc/self/status").read_text(encoding="utf-8")
  return 1024 * int(status.split("RssAnon:")[1].split()[0])


def ours(folder: Path, out: Path, dtype: str) -> tuple[Cost, Cost, int]:
  """What loading and saving costs, and the bytes of the parameters."""
  os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
  # XLA sizes its thread pool by the cores it counts: with fewer threads than devices a collective waits for ever.
  os.environ["NPROC"] = "32"
  import jax
  from flax import nnx

  from qwenlong_jax.models import qwen3, safetensors
  from qwenlong_jax.parallelism import rules
  from qwenlong_jax.parallelism.mesh import make_mesh

  config = safetensors.read_config(folder)
  abstract = nnx.state(nnx.eval_shape(lambda: qwen3.Qwen3(config, rngs=nnx.Rngs(0))))
  shardings = rules.shardings(abstract, make_mesh())
  with measured() as loading:
    params = jax.block_until_ready(safetensors.load(folder, config, shardings, jax.numpy.dtype(dtype)))
  size = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
  with measured() as saving:
    safetensors.save(out, config, params, max_shard_bytes=SHARD)
  return loading, saving, size


def by_safetensors(folder: Path, out: Path, dtype: str) -> tuple[Cost, Cost, int]:
  from safetensors.numpy import load_file, save_file

  files = sorted(folder.glob("*.safetensors"))
  with measured() as loading:
    shards = [load_file(file) for file in files]
  out.mkdir()
  with measured() as saving:
    for file, tensors in zip(files, shards):
      save_file(tensors, out / file.name)
  return loading, saving, sum(tensor.nbytes for tensors in shards for tensor in tensors.values())


def by_transformers(folder: Path, out: Path, dtype: str) -> tuple[Cost, Cost, int]:
  import torch
  from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeForCausalLM

  with measured() as loading:
    model = Qwen3MoeForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    # What is still a view of the mapped file is read here.
    size = sum(x.nbytes for x in model.parameters() if bool(torch.isfinite(x.flatten()[::512]).all()))
  with measured() as saving:
    model.bfloat16().save_pretrained(out, max_shard_size=SHARD)
  return loading, saving, size


READERS = {"ours": ours, "safetensors": by_safetensors, "transformers": by_transformers}


def measure(part: str, folder: Path, out: Path) -> dict[str, float]:
  """One part in a process of its own: seconds, and bytes of memory beyond the parameters.

  Raises:
    RuntimeError: it failed; with what it said.
  """
  command = [sys.executable, str(Path(__file__).resolve()), f"--part={part}", f"--folder={folder.parent}"]
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"HF_HUB_OFFLINE": "1"}
  done = subprocess.run(command, capture_output=True, text=True, env=environment)
  if done.returncode:
    raise RuntimeError(f"{part} failed:\n{done.stderr[-2000:]}")
  return json.loads(done.stdout.splitlines()[-1]) | {"same": same_tensors(folder, out)}


def table(rows: Mapping[str, Mapping[str, float]], size: int) -> str:
  """Gigabytes of the file a second, and of memory beyond the parameters."""
  lines = ["| | load GB/s | memory beyond, GB | save GB/s | memory beyond, GB |", "| --- | ---: | ---: | ---: | ---: |"]
  for part, row in rows.items():
    cells = [size / row["load_s"], row["load_bytes"], size / row["save_s"], row["save_bytes"]]
    lines.append(f"| {part.replace(':', ', ')} | {' | '.join(f'{cell / 1e9:.2f}' for cell in cells)} |")
  return "\n".join(lines)


def compare(folder: Path, gigabytes: float, peers: bool) -> tuple[dict[str, dict[str, float]], int]:
  """(what each part cost, bytes of the checkpoint), with the checkpoints in `folder`."""
  config = shaped(gigabytes)
  size, rows = size_of(config), {}
  say(f"writing {size / 1e9:.2f} GB: {config.num_hidden_layers} layers of {config.num_experts} experts ...")
  write(folder / "given", config)
  for part in MEASURED + COMPARED * peers:
    say(f"{part} ...")
    rows[part] = measure(part, folder / "given", folder / "saved")
    shutil.rmtree(folder / "saved")
  return rows, size


def say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
  if PART.value:
    reader, dtype = PART.value.split(":")
    there = Path(FOLDER.value or ".")
    loading, saving, kept = READERS[reader](there / "given", there / "saved", dtype)
    costs = {"load_s": loading.seconds, "load_bytes": loading.bytes - kept}
    print(json.dumps(costs | {"save_s": saving.seconds, "save_bytes": saving.bytes}))
    return 0
  with tempfile.TemporaryDirectory(dir=FOLDER.value) as folder:
    rows, size = compare(Path(folder), GIGABYTES.value, PEERS.value)
  print(f"{size / 1e9:.2f} GB of bfloat16, {len(os.sched_getaffinity(0))} cores\n\n{table(rows, size)}\n")
  print(json.dumps(rows))
  if lost := [part for part, row in rows.items() if not row["same"]]:
    print(f"error: {', '.join(lost)} did not save what was given", file=sys.stderr)
  return 1 if any(part in MEASURED for part in lost) else 0


if __name__ == "__main__":
  app.run(main)

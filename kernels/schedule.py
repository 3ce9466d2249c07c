"""The TPU compiler's own schedule of a Pallas kernel, read on any machine with libtpu: a bound on its use of the MXU.

libtpu compiles for a real topology and, asked to, writes each kernel's final VLIW bundles: one line per cycle, if
nothing had to wait. Bundles alone are not sound (a bare product has fewer than the MXU needs cycles), so each body is
replayed in order, every matrix product holding its MXU for as many cycles as it streams rows, with a queue of two. Not
modelled: DMA waits, VMEM bank conflicts, occupancy by weight loads, result queues. Never checked on a chip: an upper
bound, good for ranking kernels on one chip under one compiler.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# What libtpu needs to compile where no TPU is.
ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5p-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclass(frozen=True)
class Chip:
  """One TensorCore."""

  topology: str
  bfloat16: int  # cycles that a product of a register of rows holds its MXU
  float32: int
  peak: int  # bfloat16 FLOP a cycle
  memory: float  # bytes a cycle from its share of the HBM, by the published bandwidth and clock


CHIPS = {
  "v5e": Chip("v5e:2x2", 16, 8, 131072, 819 / 1.5),
  "v5p": Chip("v5p:2x2x1", 16, 8, 131072, 2765 / 2 / 1.75),
  "v6e": Chip("v6e:2x2", 8, 4, 524288, 1640 / 1.75),
}
QUEUE = 2  # products that wait at an MXU before the next stalls
DELAY = 4  # bundles after a branch that still run
BUNDLE = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:\s*[> ]*\{?")
PRODUCT = re.compile(r"vmatmul\.(?:mubr\.)?(bf16|f32|f8\w*)([\w.\[\]]*)")
BRANCH = re.compile(r"sbr\.(?:rel|abs)(?: \([^)]*\))? target = \$region(\d+)")
KERNEL = re.compile(r"\s*%(\w+?)[.\d]* = .*custom_call_target=\"tpu_custom_call\"")
REGION = re.compile(r"Start(?:/End empty)? region (\d+)")


@dataclass(frozen=True)
class Body:
  """A branch of the kernel's loop over its grid that holds matrix products."""

  cycles: int  # by the replay
  overhead: int  # bundles of the step around it; those of other branches (a block's first or last step) not counted

  def utilisation(self, flops: float, chip: Chip) -> float:
    """Bound on the MXU's use in a step that runs this body and does `flops`."""
    return flops / chip.peak / self.step

  @property
  def step(self) -> int:
    """Cycles of a step that runs this body, if it waits for no transfer."""
    return self.cycles + self.overhead


def read(path: Path, chip: Chip) -> list[Body]:
  """The bodies of the loop with most products in a `*-final_bundles.txt`, the fastest first.

  Raises:
    ValueError: no loop with products is in the file.
  """
  bundles: list[str] = []
  for line in path.read_text(errors="replace").splitlines():
    if BUNDLE.match(line) and "{" in line:
      bundles.append(line)
    elif bundles:
      bundles[-1] += line
  starts: dict[str, int] = {}
  for index, text in enumerate(bundles):
    for region in REGION.findall(text):
      starts.setdefault(region, index)
  branches = [(i, starts[r]) for i, text in enumerate(bundles) for r in BRANCH.findall(text) if r in starts]
  products = np.cumsum([0, *("vmatmul" in text for text in bundles)])
  held = lambda start, end: products[max(end, start)] - products[start]  # noqa: E731
  back = [(start, min(end + DELAY, len(bundles) - 1)) for end, start in branches if start <= end]
  loops = [(start, end) for start, end in back if held(start, end + 1)]
  if not loops:
    raise ValueError(f"{path}: no loop with matrix products; is this a kernel's final_bundles.txt?")
  # Of loops with the same products the innermost.
  start, end = max(loops, key=lambda loop: (held(loop[0], loop[1] + 1), loop[0] - loop[1]))
  skips = [(i, target) for i, target in branches if start <= i < target <= end + 1 and held(i + 1, target)]
  inner = [a for a in skips if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in skips)]
  spans = [(i + 1 + DELAY, target) for i, target in inner] or [(start, end + 1)]
  forward = {i: target for i, target in branches if start <= i < target}

  def length(body: tuple[int, int]) -> int:
    """Bundles that a step executes if of all branches it takes the one that holds `body`."""
    count, at = 0, start
    while at <= end:
      count += 1
      target = forward.get(at, at)
      if target > at and not at < body[0] < body[1] <= target and body != (start, end + 1):
        count, at = count + DELAY, target
      else:
        at += 1
    return count

  found = [Body(_replay(bundles[a:b], chip), length((a, b)) - (b - a)) for a, b in spans]
  return sorted(found, key=lambda body: body.cycles)


def _replay(bundles: list[str], chip: Chip) -> int:
  now = 0
  free: dict[str, int] = {}
  for text in bundles:
    now += 1
    for dtype, rest in PRODUCT.findall(text):
      held = chip.float32 if dtype == "f32" else chip.bfloat16
      unit = (re.search(r"mxu(\d)", rest) or ["", "0"])[1]
      now = max(now, free.get(unit, 0) - QUEUE * held)
      free[unit] = max(now, free.get(unit, 0)) + held
  return now


@dataclass(frozen=True)
class Transfer:
  """A permute of the ring in a scheduled program: the computation that holds it, and the kernels that run meanwhile."""

  computation: str
  shape: str
  beside: tuple[str, ...]


def transfers(hlo: str) -> list[Transfer]:
  """Every `ppermute` of a scheduled program, in whose text an instruction stands where it is started.

  Permutes of the compiler's own, which it makes of other collectives, are not among them.
  """
  found = []
  for name, body in re.findall(r"^%?(\S+) [^\n]*\{\n(.*?)^\}", hlo, re.M | re.S):
    lines = body.splitlines()
    for index, line in enumerate(lines):
      start = re.match(r"\s*%(\S+) = \((\S+?)\{.* collective-permute-start\(.*/ppermute\"", line)
      if start:
        end = next(i for i, one in enumerate(lines) if f"collective-permute-done(%{start[1]})" in one)
        kernels = (KERNEL.match(x) for x in lines[index:end])
        found.append(Transfer(name, start[2], tuple(kernel[1] for kernel in kernels if kernel)))
      elif re.search(r" collective-permute\(.*/ppermute\"", line):
        found.append(Transfer(name, line.split(" = ")[1].split("{")[0], ()))
  return found


@dataclass(frozen=True)
class Case:
  """A program to compile, its arguments' shapes and types, and kernel name -> FLOP of a step of it."""

  program: Callable
  shapes: tuple[tuple[tuple[int, ...], jnp.dtype], ...]
  kernels: dict[str, int]


def compile_case(build: Callable[[], Case], chip: str) -> Case:
  """Compiles for one core of `chip`, which needs libtpu and no TPU."""
  mesh = Mesh(topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip].topology).devices[:1], ("one",))
  with jax.set_mesh(mesh):
    case = build()
    shapes = [jax.ShapeDtypeStruct(*x, sharding=NamedSharding(mesh, PartitionSpec())) for x in case.shapes]
    jax.jit(case.program).lower(*shapes).compile()
  return case


def bounds(
  module: str, name: str, chip: str, options: Mapping[str, str] = MappingProxyType({})
) -> dict[str, list[float]]:
  """Kernel name -> bound on the MXU's use in each of its bodies, the best first, of the case `name` of `module`.CASES.

  `options` are the compiler's.

  Raises:
    RuntimeError: it did not compile; the compiler's words.
  """
  found, flops = _compiled_apart(module, name, chip, options)
  return {kernel: [b.utilisation(flops[kernel], CHIPS[chip]) for b in bodies] for kernel, bodies in found.items()}


def steps(module: str, name: str, chip: str) -> dict[str, list[int]]:
  """Kernel name -> cycles of a step of each of its bodies, the fewest first, without waiting for memory; as `bounds`.

  A kernel bound by memory should have fewer than its step's bytes take to arrive, bytes / `Chip.memory`.
  """
  found, _ = _compiled_apart(module, name, chip, {})
  return {kernel: [body.step for body in bodies] for kernel, bodies in found.items()}


def _compiled_apart(
  module: str, name: str, chip: str, options: Mapping[str, str]
) -> tuple[dict[str, list[Body]], dict[str, int]]:
  """The bodies of each kernel of a case, compiled in another process, and the case's `kernels`."""
  with tempfile.TemporaryDirectory() as folder:
    # The compiler reads these when it is loaded: a process for each.
    flags = {"xla_jf_dump_to": folder, "xla_jf_dump_llo_text": "true", **options}
    environment = ENVIRONMENT | {"LIBTPU_INIT_ARGS": " ".join(f"--{flag}={value}" for flag, value in flags.items())}
    command = [sys.executable, "-m", __name__, module, name, chip]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
      words = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("-")]
      raise RuntimeError(next((line for line in reversed(words) if "Error" in line), "\n".join(words[-3:])))
    found, kernels = {}, json.loads(done.stdout.splitlines()[-1])
    for kernel in kernels:
      paths = [p for p in Path(folder).glob(f"*{kernel}*-final_bundles.txt") if "schedule-analysis" not in p.name]
      if not paths:
        raise RuntimeError(f"the compiler wrote no schedule of a kernel called {kernel}")
      found[kernel] = read(paths[0], CHIPS[chip])
    return found, kernels


if __name__ == "__main__":
  compiled = compile_case(importlib.import_module(sys.argv[1]).CASES[sys.argv[2]], sys.argv[3])
  print(json.dumps(compiled.kernels))

"""token_stats beside materialised logits and tokamax' linear softmax cross-entropy: time, or a TPU program's memory.

Width 2,048, vocabulary 151,936, bfloat16. tokamax sums the log-probabilities to one number and knows no entropy and no
temperature.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from qwenlong_jax.kernels import chip, schedule
from qwenlong_jax.kernels.timing import backend, median
from qwenlong_jax.kernels.token_stats import token_stats

TEMPERATURE = 0.7
TOKENS = 8192  # of what is compiled for its memory
WIDTH, VOCABULARY = 2048, 151936
SMALL = 256, 4096  # what is timed on a CPU instead
LENGTHS = {"tpu": (8192, 65536), "gpu": (8192, 65536), "cpu": (512, 2048)}


def logprob(hidden: Array, head: Array, target: Array) -> tuple[Array]:
  return token_stats(hidden, head, target, TEMPERATURE)[:1]


def both(hidden: Array, head: Array, target: Array) -> tuple[Array, Array]:
  return token_stats(hidden, head, target, TEMPERATURE)


def materialised(hidden: Array, head: Array, target: Array) -> tuple[Array, Array]:
  logp = jax.nn.log_softmax(jnp.matmul(hidden, head, preferred_element_type=jnp.float32) / TEMPERATURE)
  return jnp.take_along_axis(logp, target[:, None], 1)[:, 0], -(jnp.exp(logp) * logp).sum(1)


def tokamax(hidden: Array, head: Array, target: Array) -> tuple[Array]:
  from tokamax import linear_softmax_cross_entropy_loss as loss

  return (loss(hidden, target, head, implementation="mosaic_tpu" if chip.tpu() else "xla"),)


CONTENDERS: dict[str, Callable] = {
  "ours, log-probability": logprob,
  "ours, and entropy": both,
  "materialised, both": materialised,
} | ({"tokamax, summed": tokamax} if importlib.util.find_spec("tokamax") else {})


def with_gradients(function: Callable) -> Callable:
  def run(hidden: Array, head: Array, target: Array) -> tuple:
    out, vjp = jax.vjp(lambda hidden, head: function(hidden, head, target), hidden, head)
    return out, vjp(jax.tree.map(jnp.ones_like, out))

  return run


def times(lengths: Sequence[int]) -> None:
  """Prints milliseconds and TFLOP/s (of 1 and of 3 products) of forward and of forward with backward, on the device at
  hand. What does not fit says so."""
  small = backend() == "cpu"
  width, vocabulary = SMALL if small else (WIDTH, VOCABULARY)
  dtype = jnp.float32 if small else jnp.bfloat16
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {width} x {vocabulary}, {jnp.dtype(dtype).name}")
  print(f"{'tokens':>7} {'implementation':24} {'forward ms':>11} {'TFLOP/s':>8} {'both ms':>11} {'TFLOP/s':>8}")
  for tokens in lengths or LENGTHS[backend()]:
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, head = (jax.random.normal(k, s, dtype) for k, s in zip(keys, ((tokens, width), (width, vocabulary))))
    operands = hidden, head * width**-0.5, jax.random.randint(keys[2], (tokens,), 0, vocabulary)
    for name, function in CONTENDERS.items():
      cells = ""
      for program, products in ((function, 1), (with_gradients(function), 3)):
        try:
          seconds = median(jax.jit(program), *operands)
          cells += f" {seconds * 1e3:11.2f} {products * 2 * hidden.size * vocabulary / seconds / 1e12:8.3g}"
        except (jax.errors.JaxRuntimeError, ValueError) as error:
          cells += f" {str(error).splitlines()[0][:20]:>20}"
      print(f"{tokens:7} {name:24}{cells}", flush=True)


def memories(chips: Sequence[str]) -> None:
  """Prints the megabytes that the program with gradients needs on each chip beside its arguments, as its compiler says:
  while it runs, and for its results (tokamax' gradients are float32). Needs libtpu, no TPU."""
  print(f"{'chip':5} {'implementation':24} {'temporary':>9} {'results':>8} MB   ({TOKENS} tokens)")
  for name in chips:
    for contender in CONTENDERS:
      # The compiler reads the environment when it is loaded: a process for each.
      command = [sys.executable, "-m", __name__, name, contender]
      done = subprocess.run(command, env=os.environ | schedule.ENVIRONMENT, capture_output=True, text=True)
      said = done.stdout.splitlines() or [line for line in done.stderr.splitlines() if "Error" in line] or ["failed"]
      print(f"{name:5} {contender:24} {said[-1][:120]}", flush=True)


def needed(name: str, contender: str) -> tuple[int, int]:
  """(temporary, results) in bytes of the program with gradients, compiled for one core of the chip `name`."""
  topology = topologies.get_topology_desc(platform="tpu", topology_name=schedule.CHIPS[name].topology)
  mesh = Mesh(topology.devices[:1], ("one",))
  shape = lambda *sizes, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(  # noqa: E731
    sizes, dtype, sharding=NamedSharding(mesh, PartitionSpec())
  )
  operands = shape(TOKENS, WIDTH), shape(WIDTH, VOCABULARY), shape(TOKENS, dtype=jnp.int32)
  # tokamax asks the default device for the chip, which is a CPU here.
  device = mock.patch("jax.extend.backend.get_default_device", lambda: mesh.devices.flat[0])
  with jax.set_mesh(mesh), device:
    lowered = jax.jit(with_gradients(CONTENDERS[contender])).lower(*operands)
  memory = lowered.compile().memory_analysis()
  if memory is None:
    raise RuntimeError(f"the compiler for {name} does not say how much memory its program needs")
  return memory.temp_size_in_bytes, memory.output_size_in_bytes


if __name__ == "__main__":
  temporary, results = needed(sys.argv[1], sys.argv[2])
  print(f"{temporary / 1e6:9.1f} {results / 1e6:8.1f}")

"""How long a compiled program takes on the device at hand."""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from qwenlong_jax.kernels import chip


def backend() -> str:
  """"tpu", "gpu" or "cpu": what programs here run on."""
  return "tpu" if chip.tpu() else jax.default_backend()


def median(program: Callable, *args: Array, runs: int = 5) -> float:
  """Seconds of a run, compiled."""
  jax.block_until_ready(program(*args))
  taken = []
  for _ in range(runs):
    start = time.perf_counter()
    jax.block_until_ready(program(*args))
    taken.append(time.perf_counter() - start)
  return statistics.median(taken)


def matmul_rate(size: int) -> float:
  """FLOP/s that a bfloat16 product of two size x size matrices reaches: what "all of the device" means in a plot."""
  x = jnp.ones((size, size), jnp.bfloat16)
  return 2 * size**3 / median(jax.jit(jnp.matmul), x, x)

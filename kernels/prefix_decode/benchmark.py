"""prefix_decode beside a copy of as many bytes and beside a prefix that every branch reads for itself: time on this
machine, or for TPUs the compiler's schedule against the time that the cache takes to arrive.

8 branches, 32 query heads on 4 key-value heads of 128, bfloat16; one prompt, suffixes of a sixteenth of its length.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from qwenlong_jax.kernels import schedule
from qwenlong_jax.kernels.prefix_decode import pallas_tpu, prefix_decode
from qwenlong_jax.kernels.schedule import CHIPS, Case
from qwenlong_jax.kernels.timing import backend, median

GROUP, HEADS, KV_HEADS, HEAD_DIM = 8, 32, 4, 128
LAYERS = 2  # in the cache; one is read
LENGTHS = {"tpu": (8192, 32768, 122880), "gpu": (8192, 32768, 122880), "cpu": (1024, 4096)}


def times(lengths: Sequence[int]) -> None:
  """Prints microseconds and GB/s of the bytes that a step must read once, on the device at hand.

  What doesn't fit the device's memory says so.
  """
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
  print(f"{'prefix':>7} {'implementation':24} {'microseconds':>13} {'GB/s':>8}")
  for length in lengths or LENGTHS[backend()]:
    args = operands(length)
    read = sum(x.nbytes for x in jax.tree.leaves((args[3], args[5]))) / LAYERS
    row = jnp.zeros(int(read) // 4, jnp.bfloat16)  # a copy reads and writes, together as many bytes
    programs: dict[str, tuple[Callable, tuple]] = {
      "ours": (prefix_decode, args),
      "a copy": (lambda x: x + 1, (row,)),
      "prefix read 8 times": (unshared, args),
    }
    for name, (program, given) in programs.items():
      try:
        seconds = median(jax.jit(program), *given)
        cells = f"{seconds * 1e6:13.1f} {read / seconds / 1e9:8.1f}"
      except jax.errors.JaxRuntimeError as error:
        cells = str(error).splitlines()[0][:40]
      print(f"{length:7} {name:24} {cells}", flush=True)


def operands(length: int) -> tuple:
  """Of `prefix_decode`, one prompt with full caches."""
  keys = iter(jax.random.split(jax.random.key(0), 7))
  random = lambda *shape: jax.random.normal(next(keys), shape, jnp.bfloat16)  # noqa: E731
  slots = max(length // 16, 1)
  new = [random(1, GROUP, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
  prefix = tuple(random(LAYERS, 1, KV_HEADS, length, HEAD_DIM) for _ in range(2))
  suffix = tuple(random(LAYERS, 1, GROUP, KV_HEADS, slots, HEAD_DIM) for _ in range(2))
  return *new, prefix, jnp.full(1, length), suffix, jnp.full((1, GROUP), slots), jnp.int32(LAYERS - 1)


def unshared(
  q: Array, k: Array, v: Array, prefix: tuple, prefix_length: Array, suffix: tuple, suffix_length: Array, layer: Array
) -> Array:
  """Every branch with a whole cache of its own, as a decoder without shared prefixes has it; full caches only."""
  own = []
  for before, after, new in zip(prefix, suffix, (k, v)):
    shared = jnp.broadcast_to(before[layer], (GROUP, *before.shape[2:]))
    own.append(jnp.moveaxis(jnp.concatenate([shared, after[layer, 0], new[0, :, :, None]], axis=2), 2, 1))
  keys, values = jax.lax.optimization_barrier(own)
  attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn" if backend() == "gpu" else "xla")
  return attend(q[0][:, None], keys, values)[:, 0][None]


def one_prefix() -> Case:
  """The kernel alone; for its FLOP the bytes that a step takes."""
  rows = GROUP * HEADS // KV_HEADS
  block = pallas_tpu.slots_of_a_block(rows, HEAD_DIM, 2)
  cache = ((LAYERS, 1, KV_HEADS, 32768, HEAD_DIM), jnp.bfloat16)

  def program(q: Array, k: Array, v: Array, length: Array, layer: Array) -> tuple:
    return pallas_tpu.attend(q, (k, v), length, layer)

  shapes = ((1, KV_HEADS, rows, HEAD_DIM), jnp.bfloat16), cache, cache, ((1,), jnp.int32), ((), jnp.int32)
  return Case(program, shapes, {"prefix_decode": 2 * 2 * block * HEAD_DIM})


CASES = {"ours": one_prefix}


def schedules(chips: Sequence[str]) -> None:
  """Prints for each chip the cycles that a block of the cache takes to arrive over those of the step that computes with
  it: above 100% the step is hidden and the kernel as fast as the memory."""
  print(f"{'chip':5} {'kernel':24} transfer over compute   (whole block, block with its end masked)")
  for name in chips:
    (bodies,) = schedule.bounds(__name__, "ours", name).values()
    shares = (bound * CHIPS[name].peak / CHIPS[name].hbm for bound in bodies)
    print(f"{name:5} {'ours':24} " + ", ".join(f"{share:.0%}" for share in shares), flush=True)

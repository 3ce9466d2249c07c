"""prefix_decode beside a copy of as many bytes and beside the prefix repeated for each branch; or the compiler's
schedule of its kernel for each TPU.

8 branches of 32 query heads on 4 key-value heads of 128, bfloat16, with as many suffix slots as an eighth of the
prefix. The bound of memory: what a step must read is the prefix once and each branch's suffix.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from qwenlong_jax.kernels import schedule
from qwenlong_jax.kernels.prefix_decode import pallas_tpu, prefix_decode
from qwenlong_jax.kernels.schedule import Case
from qwenlong_jax.kernels.timing import backend, median

G, HEADS, KV_HEADS, HEAD_DIM = 8, 32, 4, 128
SHARE = 8  # prefix slots for each slot of a branch's suffix
LAYERS = 2
DTYPE = jnp.bfloat16
LENGTHS = {"tpu": (8192, 32768, 122880), "gpu": (8192, 32768, 122880), "cpu": (1024, 4096)}
REPEATED = 4 * 2**30  # bytes of repeated keys and values up to which the unshared form is timed
ROWS = {"prefix": G * HEADS // KV_HEADS, "suffix": HEADS // KV_HEADS}  # that read the same slots


def case(part: str) -> Case:
  """The kernel over the prefix, or over the branches' suffixes."""
  batch, slots = {"prefix": (2, 32768), "suffix": (2 * G, 4096)}[part]
  cache = (LAYERS, batch, KV_HEADS, slots, HEAD_DIM), DTYPE
  flops = 4 * ROWS[part] * HEAD_DIM * _slots(part)

  def attend(q: Array, k: Array, v: Array, length: Array, layer: Array) -> tuple:
    return pallas_tpu.attend(q, (k, v), length, layer)

  q = (batch, KV_HEADS, ROWS[part], HEAD_DIM), DTYPE
  return Case(attend, (q, cache, cache, ((batch,), jnp.int32), ((), jnp.int32)), {"prefix_decode": flops})


CASES: dict[str, Callable[[], Case]] = {part: functools.partial(case, part) for part in ROWS}


def _slots(part: str) -> int:
  return pallas_tpu.slots_of_a_block(ROWS[part], HEAD_DIM, DTYPE.dtype.itemsize)


def bytes_of_a_step(part: str) -> int:
  """Keys and values of a block."""
  return 2 * _slots(part) * HEAD_DIM * DTYPE.dtype.itemsize


def schedules(chips: Sequence[str]) -> None:
  """Prints, for each chip, the cycles of a step of the kernel and those that its keys and values take to arrive.

  Where the first are fewer, memory is the bound. The schedule's caveats hold (`kernels.schedule`): loads of the MXU's
  stationary operand, which keys and values are here, are counted as they issue only.
  """
  print(f"{'chip':5} {'part':8} {'block':>6} {'whole':>7} {'last':>7} {'transfer':>9}   (cycles)")
  for name in chips:
    for part in CASES:
      try:
        whole, last = schedule.steps(__name__, part, name)["prefix_decode"]
        transfer = bytes_of_a_step(part) / schedule.CHIPS[name].memory
        print(f"{name:5} {part:8} {_slots(part):6} {whole:7} {last:7} {transfer:9.0f}", flush=True)
      except RuntimeError as error:
        print(f"{name:5} {part:8} {str(error)[:120]}", flush=True)


def times(lengths: Sequence[int]) -> None:
  """Prints microseconds and GB/s, of bytes that must be read (of the copy: read and written), on the device at hand."""
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
  print(f"{'prefix':>7} {'program':24} {'us':>11} {'GB/s':>8}")
  for length in lengths or LENGTHS[backend()]:
    for name, (program, args, moved) in contenders(length).items():
      seconds = median(jax.jit(program), *args)
      print(f"{length:7} {name:24} {seconds * 1e6:11.1f} {moved / seconds / 1e9:8.1f}", flush=True)


def contenders(length: int) -> dict[str, tuple[Callable, tuple, int]]:
  """name -> (program, arguments, bytes that it must move); full caches."""
  suffix_slots = max(length // SHARE, 1)
  keys = iter(jax.random.split(jax.random.key(0), 7))
  make = lambda *shape: jax.random.normal(next(keys), shape, DTYPE)  # noqa: E731
  q, k, v = make(1, G, HEADS, HEAD_DIM), make(1, G, KV_HEADS, HEAD_DIM), make(1, G, KV_HEADS, HEAD_DIM)
  prefix = make(LAYERS, 1, KV_HEADS, length, HEAD_DIM), make(LAYERS, 1, KV_HEADS, length, HEAD_DIM)
  suffix = tuple(make(LAYERS, 1, G, KV_HEADS, suffix_slots, HEAD_DIM) for _ in range(2))
  counts = jnp.full(1, length, jnp.int32), jnp.full((1, G), suffix_slots, jnp.int32)
  read = sum(x.nbytes for x in (*prefix, *suffix)) // LAYERS
  ours = "pallas_tpu" if backend() == "tpu" else "xla"
  decode = functools.partial(prefix_decode, implementation=ours)
  found: dict[str, tuple[Callable, tuple, int]] = {
    f"ours ({ours})": (decode, (q, k, v, prefix, counts[0], suffix, counts[1], jnp.int32(LAYERS - 1)), read),
    "copy": (lambda x: x + 1, (jnp.zeros(read // 2 // 4, jnp.float32),), read // 2 * 2),
  }
  unshared = G * (length + suffix_slots) * KV_HEADS * HEAD_DIM * DTYPE.dtype.itemsize * 2
  if unshared <= REPEATED:
    # One layer, copied out and repeated beforehand, which costs it nothing here.
    whole = [
      jnp.concatenate([jnp.broadcast_to(before[0], (G, *before.shape[2:])), after[0, 0]], 2).swapaxes(1, 2)
      for before, after in zip(prefix, suffix)
    ]
    peer = functools.partial(jax.nn.dot_product_attention, implementation="cudnn" if backend() == "gpu" else "xla")
    found["jax.nn, prefix repeated"] = (peer, (q.reshape(G, 1, HEADS, HEAD_DIM), *whole), unshared)
  return found

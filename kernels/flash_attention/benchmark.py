"""flash_attention beside splash attention and tokamax: the compiler's schedule for each TPU, or time on this machine.

32 query heads, 4 key-value heads of 128, bfloat16. FLOP are those of the causal half, backward 2.5 times forward.
"""

import functools
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from qwenlong_jax.kernels import chip, schedule
from qwenlong_jax.kernels.flash_attention import flash_attention, pallas_tpu
from qwenlong_jax.kernels.schedule import Case

HEADS, KV_HEADS, HEAD_DIM = 32, 4, 128
LENGTH = 8192  # of what is compiled for its schedule, which the length does not change
FORWARD, BACKWARD = 4, 10  # FLOP per query, key and D of a head


def ours() -> Case:
  tiles = pallas_tpu.tiles_for(HEADS // KV_HEADS, HEAD_DIM, LENGTH)
  step = tiles.queries * (HEADS // KV_HEADS) * tiles.keys * HEAD_DIM

  def gradients(q: Array, k: Array, v: Array, segment: Array, position: Array, g: Array) -> tuple:
    attend = functools.partial(flash_attention, segment=segment, position=position, implementation="pallas_tpu")
    return jax.vjp(attend, q, k, v)[1](g)

  query, key = (((1, LENGTH, heads, HEAD_DIM), jnp.bfloat16) for heads in (HEADS, KV_HEADS))
  slots = ((1, LENGTH), jnp.int32)
  return Case(
    gradients,
    (query, key, key, slots, slots, query),
    {"flash_attention_forward": FORWARD * step, "flash_attention_backward": BACKWARD * step},
  )


def peer(package: str, queries: int, keys: int, compute: int) -> Case:
  """Splash attention, of JAX or of tokamax' fork: the heads of one key-value head, causal."""
  query, key = ((HEADS // KV_HEADS, LENGTH, HEAD_DIM), jnp.bfloat16), ((LENGTH, HEAD_DIM), jnp.bfloat16)

  def gradients(q: Array, k: Array, v: Array, g: Array) -> tuple:
    return jax.vjp(_splash_kernel(package, queries, keys, compute, LENGTH), q, k, v)[1](g)

  return Case(
    gradients,
    (query, key, key, query),
    {"splash_mqa_fwd": FORWARD * HEAD_DIM * queries * keys, "splash_mqa_dkv": BACKWARD * HEAD_DIM * queries * keys},
  )


def _splash_kernel(package: str, queries: int, keys: int, compute: int, length: int) -> Callable:
  sizes = {
    **dict(block_q=queries, block_kv=keys, block_kv_compute=compute),
    **dict(block_q_dkv=queries, block_kv_dkv=keys, block_kv_dkv_compute=compute, use_fused_bwd_kernel=True),
  }
  if package == "tokamax":
    from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel as splash
    from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_mask as masks

    causal = masks.CausalMask((length, length))
    return splash.make_splash_mqa_single_device(causal, config=splash.SplashConfig(**sizes))
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * (HEADS // KV_HEADS))
  return splash.make_splash_mqa_single_device(mask, block_sizes=splash.BlockSizes(**sizes))


CASES: dict[str, Callable[[], Case]] = {"ours": ours} | {
  f"{package} {queries} x {keys} ({compute})": functools.partial(peer, package, queries, keys, compute)
  for package in ("splash", "tokamax")
  for queries, keys, compute in ((1024, 1024, 1024), (1024, 2048, 512), (1024, 2048, 1024), (2048, 2048, 512))
  if package == "splash" or importlib.util.find_spec("tokamax")
}
LENGTHS = {"tpu": (8192, 32768, 131072), "gpu": (8192, 32768, 131072), "cpu": (1024, 2048)}


def schedules(chips: Sequence[str]) -> None:
  """Prints the bound on the MXU's use of each kernel's step, for each chip: body without mask, body with."""
  print(f"{'chip':5} {'kernel':28} {'forward':>16} {'backward, fused':>16}   (without mask, with)")
  for name in chips:
    for case in CASES:
      try:
        found = schedule.bounds(__name__, case, name).values()
        cells = [", ".join(f"{bound:.1%}" for bound in bodies) for bodies in found]
        print(f"{name:5} {case:28} " + " ".join(f"{cell:>16}" for cell in cells), flush=True)
      except RuntimeError as error:
        print(f"{name:5} {case:28} {str(error)[:120]}", flush=True)


def times(lengths: Sequence[int]) -> None:
  """Prints milliseconds and TFLOP/s of forward and of forward with backward, causal, on the device at hand."""
  backend = "tpu" if chip.tpu() else jax.default_backend()
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
  print(f"{'length':>7} {'implementation':24} {'forward ms':>11} {'TFLOP/s':>8} {'both ms':>11} {'TFLOP/s':>8}")
  for length in lengths or LENGTHS[backend]:
    for name, attend in contenders(backend, length).items():
      flops = FORWARD * HEADS * HEAD_DIM * length**2 / 2
      q, k, v = (
        jax.random.normal(key, (1, length, heads, HEAD_DIM), jnp.bfloat16)
        for key, heads in zip(jax.random.split(jax.random.key(0), 3), (HEADS, KV_HEADS, KV_HEADS))
      )
      forward = jax.jit(attend)
      both = jax.jit(lambda q, k, v, attend=attend: jax.vjp(attend, q, k, v)[1](q))
      cells = ""
      for program, work in ((forward, flops), (both, flops * (FORWARD + BACKWARD) / FORWARD)):
        seconds = median(program, q, k, v)
        cells += f" {seconds * 1e3:11.2f} {work / seconds / 1e12:8.3g}"
      print(f"{length:7} {name:24}{cells}", flush=True)


def contenders(backend: str, length: int) -> dict[str, Callable]:
  slots = jnp.zeros((1, length), jnp.int32), jnp.arange(length, dtype=jnp.int32)[None]
  named = lambda name: lambda q, k, v: flash_attention(q, k, v, *slots, implementation=name)  # noqa: E731
  peers: dict[str, tuple[str, Callable]] = {
    "tpu": ("splash", functools.partial(_splash, length=length)),
    "gpu": ("cudnn", functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")),
    "cpu": ("jax.nn", functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="xla")),
  }
  ours = "pallas_tpu" if backend == "tpu" else "xla"
  return dict([(f"ours ({ours})", named(ours)), peers[backend]])


def _splash(q: Array, k: Array, v: Array, *, length: int) -> Array:
  kernel = _splash_kernel("splash", 1024, min(2048, length), min(1024, length), length)
  tall = jnp.moveaxis(q[0] * HEAD_DIM**-0.5, 1, 0).reshape(KV_HEADS, -1, length, HEAD_DIM)
  out = jax.vmap(kernel)(tall, jnp.moveaxis(k[0], 1, 0), jnp.moveaxis(v[0], 1, 0))
  return jnp.moveaxis(out.reshape(HEADS, length, HEAD_DIM), 0, 1)[None]


def median(program: Callable, *args: Array, runs: int = 5) -> float:
  """Seconds of a run, compiled."""
  jax.block_until_ready(program(*args))
  taken = []
  for _ in range(runs):
    start = time.perf_counter()
    jax.block_until_ready(program(*args))
    taken.append(time.perf_counter() - start)
  return statistics.median(taken)

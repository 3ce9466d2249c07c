"""flash_attention beside splash attention and tokamax: the compiler's schedule for each TPU, or time on this machine.

32 query heads, 4 key-value heads of 128, bfloat16. FLOP are those of what the mask shows, backward 2.5 times forward.
"""

import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array

from qwenlong_jax.kernels import schedule
from qwenlong_jax.kernels.flash_attention import flash_attention, pallas_tpu
from qwenlong_jax.kernels.schedule import Case
from qwenlong_jax.kernels.timing import backend, median

HEADS, KV_HEADS, HEAD_DIM = 32, 4, 128
BRANCHES = 8  # of the shared prefix, which is half of the slots
LENGTH = 8192  # of what is compiled for its schedule, which the length does not change
MASKS = "causal", "prefix"
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


@dataclass(frozen=True)
class Timing:
  """Of one implementation at one length: seconds of forward and of forward with backward, and forward's FLOP."""

  length: int
  mask: str
  name: str
  forward: float
  both: float
  flops: float

  def rates(self) -> tuple[float, float]:
    """FLOP/s of forward and of both."""
    return self.flops / self.forward, self.flops * (FORWARD + BACKWARD) / FORWARD / self.both


def times(lengths: Sequence[int]) -> None:
  """Prints milliseconds and TFLOP/s of forward and of forward with backward on the device at hand."""
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
  heads = "".join(f" {part + ' ms':>11} {'TFLOP/s':>8}" for part in ("forward", "both"))
  print(f"{'length':>7} {'mask':7} {'implementation':24}{heads}")
  for one in measure(lengths):
    cells = "".join(
      f" {seconds * 1e3:11.2f} {rate / 1e12:8.3g}" for seconds, rate in zip((one.forward, one.both), one.rates())
    )
    print(f"{one.length:7} {one.mask:7} {one.name:24}{cells}", flush=True)


def measure(lengths: Sequence[int] = ()) -> Iterator[Timing]:
  """The device's timings: causal attention beside the usual kernel for it, and a shared prefix with its branches beside
  what one does without its mask."""
  for length in lengths or LENGTHS[backend()]:
    for mask in MASKS:
      q, k, v = operands(length)
      for name, attend in contenders(mask, length).items():
        both = jax.jit(lambda q, k, v, attend=attend: jax.vjp(attend, q, k, v)[1](q))
        seconds = median(jax.jit(attend), q, k, v), median(both, q, k, v)
        yield Timing(length, mask, name, *seconds, flops_of(mask, length))


def operands(length: int) -> tuple[Array, ...]:
  """q, k, v"""
  return tuple(
    jax.random.normal(key, (1, length, heads, HEAD_DIM), jnp.bfloat16)
    for key, heads in zip(jax.random.split(jax.random.key(0), 3), (HEADS, KV_HEADS, KV_HEADS))
  )


def flops_of(mask: str, length: int) -> float:
  """Forward's."""
  return FORWARD * HEADS * HEAD_DIM * (length**2 / 2 if mask == "causal" else _shown_behind_prefix(length))


def contenders(mask: str, length: int) -> dict[str, Callable]:
  """Name -> attention (q, k, v) under the mask: ours, then the peer for this backend."""
  name = "pallas_tpu" if backend() == "tpu" else "xla"
  slots = slots_of(mask, length)
  ours = lambda q, k, v: flash_attention(q, k, v, *slots, implementation=name)  # noqa: E731
  if backend() == "tpu":
    causal = functools.partial(_splash, length=length)
    peers = {"causal": ("splash", causal), "prefix": ("splash, prefix repeated", functools.partial(repeated, causal))}
  else:
    peer, kind = ("cudnn", "cudnn") if backend() == "gpu" else ("jax.nn", "xla")
    attend = functools.partial(jax.nn.dot_product_attention, implementation=kind)
    causal = functools.partial(attend, is_causal=True)
    peers = {"causal": (peer, causal), "prefix": (f"{peer}, two calls", functools.partial(two_calls, attend))}
  return dict([(f"ours ({name})", ours), peers[mask]])


def slots_of(mask: str, length: int) -> tuple[Array, Array]:
  """Segments and positions [1, length]: "causal", or "prefix" and its branches, all as long."""
  place = jnp.arange(length, dtype=jnp.int32)[None]
  if mask == "causal":
    return jnp.zeros_like(place), place
  prefix, branch = _halves(length)
  own = jnp.maximum(place - prefix, 0)
  return jnp.where(place < prefix, 0, own // branch + 1), jnp.where(place < prefix, place, prefix + own % branch)


def two_calls(attend: Callable, q: Array, k: Array, v: Array) -> Array:
  """Prefix and branches without the mask: branches to the prefix and to themselves, combined by their log-sum-exps.

  Its gradient is for timing only: `jax.nn` gives the log-sum-exp none.
  """
  prefix, branch = _halves(q.shape[1])
  cut = lambda x: x[0, prefix:].reshape(BRANCHES, branch, *x.shape[2:])  # noqa: E731
  before = attend(q[:, :prefix], k[:, :prefix], v[:, :prefix], is_causal=True)
  far, far_lse = attend(q[:, prefix:], k[:, :prefix], v[:, :prefix], return_residual=True)
  own, own_lse = attend(cut(q), cut(k), cut(v), is_causal=True, return_residual=True)
  share = jax.nn.sigmoid(far_lse - own_lse.reshape(far_lse.shape))[..., None].astype(q.dtype)
  return jnp.concatenate([before, far * share + own.reshape(far.shape) * (1 - share)], axis=1)


def repeated(attend: Callable, q: Array, k: Array, v: Array) -> Array:
  """Prefix and branches without the mask: every branch behind a prefix of its own."""
  prefix, branch = _halves(q.shape[1])
  rows = []
  for g in range(BRANCHES):
    mine = lambda x, at=prefix + g * branch: jnp.concatenate([x[:, :prefix], x[:, at : at + branch]], axis=1)  # noqa: E731
    rows.append(attend(mine(q), mine(k), mine(v), length=prefix + branch))
  return jnp.concatenate([rows[0][:, :prefix], *(row[:, prefix:] for row in rows)], axis=1)


def _halves(length: int) -> tuple[int, int]:
  """(slots of the prefix, of each branch)"""
  if length % (2 * BRANCHES):
    raise ValueError(f"{length=} must divide by {2 * BRANCHES} for a prefix and {BRANCHES} branches")
  return length // 2, length // 2 // BRANCHES


def _shown_behind_prefix(length: int) -> float:
  prefix, branch = _halves(length)
  return prefix**2 / 2 + BRANCHES * branch * (prefix + branch / 2)


def _splash(q: Array, k: Array, v: Array, *, length: int) -> Array:
  padded = -(-length // 128) * 128 if length < 2048 else -(-length // 2048) * 2048  # to whole blocks; nobody sees them
  kernel = _splash_kernel("splash", min(1024, padded), min(2048, padded), min(1024, padded), padded)
  q, k, v = (jnp.pad(x[0], ((0, padded - length), (0, 0), (0, 0))) for x in (q * HEAD_DIM**-0.5, k, v))
  tall = jnp.moveaxis(q, 1, 0).reshape(KV_HEADS, -1, padded, HEAD_DIM)
  out = jax.vmap(kernel)(tall, jnp.moveaxis(k, 1, 0), jnp.moveaxis(v, 1, 0))
  return jnp.moveaxis(out.reshape(HEADS, padded, HEAD_DIM), 0, 1)[None, :length]

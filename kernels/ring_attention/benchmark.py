"""ring_attention over all devices at hand, as one ring, beside attention to the whole sequence on one of them; or the
memory of TPU programs, and how many of the ring's transfers they hide.

Heads, masks and what computes on one device are those of flash_attention's benchmark. FLOP are those of what the mask
shows, shared out over the devices; bytes those of keys, values and their gradients.
"""

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from qwenlong_jax.kernels import chip
from qwenlong_jax.kernels.flash_attention import benchmark as whole
from qwenlong_jax.kernels.flash_attention.benchmark import HEAD_DIM, HEADS, KV_HEADS, MASKS
from qwenlong_jax.kernels.ring_attention import (
  BLOCK,
  COMPILER_OPTIONS,
  IMPLEMENTATIONS,
  ring_attention,
  to_ring,
)
from qwenlong_jax.kernels.schedule import CHIPS, transfers
from qwenlong_jax.kernels.timing import backend, median

COMPILED = 32768  # slots of what is compiled for its memory
LENGTHS = {"tpu": (32768, 131072), "gpu": (32768, 131072), "cpu": (512,)}
SLOTS = PartitionSpec(None, "ring")


def ring_of(devices: Sequence[jax.Device]) -> Mesh:
  return Mesh(np.array(devices), ("ring",), axis_types=(AxisType.Auto,))


def over_ring(implementation: str, mesh: Mesh, block: int) -> Callable:
  """Attention (q, k, v, segment, position) of slots that were dealt over the mesh."""
  attend = functools.partial(ring_attention, axis="ring", block=block, implementation=implementation)
  return jax.shard_map(attend, mesh=mesh, in_specs=(SLOTS,) * 5, out_specs=SLOTS)


def with_gradients(attend: Callable) -> Callable:
  """Gradients of q, k and v, for the cotangent q."""
  return lambda q, k, v, *slots: jax.vjp(lambda q, k, v: attend(q, k, v, *slots), q, k, v)[1](q)


def sent(implementation: str, length: int, ring: int) -> tuple[int, int]:
  """Bytes that leave each device, forward and forward with backward: bfloat16 keys, and float32 gradients of them."""
  shard = 2 * length // ring * KV_HEADS * HEAD_DIM
  if implementation == "gather" or ring == 1:
    return (ring - 1) * shard * 2, (ring - 1) * shard * (2 + 2 + 4)
  return ring * shard * 2, (ring * 2 + (ring + 1) * (2 + 4)) * shard


def contenders(mask: str, length: int, mesh: Mesh) -> dict[str, tuple[Callable, tuple, int]]:
  """Name -> (attention, its operands where it wants them, number of devices)."""
  operands, slots = whole.operands(length), whole.slots_of(mask, length)
  block = min(BLOCK, length // mesh.size)
  # Dealt beforehand, as training's batches are.
  dealt = [jax.device_put(to_ring(x, mesh.size, block), NamedSharding(mesh, SLOTS)) for x in (*operands, *slots)]
  found = {name: (over_ring(name, mesh, block), tuple(dealt), mesh.size) for name in IMPLEMENTATIONS}
  return found | {name: (attend, operands, 1) for name, attend in whole.contenders(mask, length).items()}


def times(lengths: Sequence[int]) -> None:
  """Prints, for forward and for forward with backward, milliseconds, and of each device TFLOP/s, the share of its peak
  (where we know that) and GB/s sent. What does not fit says so."""
  mesh, info = ring_of(jax.devices()), chip.tpu()
  print(f"{mesh.size} of {jax.devices()[0].device_kind}, jax {jax.__version__}")
  parts = "".join(f" {part + ' ms':>11} {'TFLOP/s':>8} {'peak':>6} {'GB/s':>7}" for part in ("forward", "both"))
  print(f"{'length':>7} {'mask':7} {'implementation':24} {'on':>3}{parts}")
  options = COMPILER_OPTIONS if info else None
  for length in lengths or LENGTHS[backend()]:
    for mask in MASKS:
      flops = whole.flops_of(mask, length)
      for name, (attend, operands, devices) in contenders(mask, length, mesh).items():
        work = flops, flops * (whole.FORWARD + whole.BACKWARD) / whole.FORWARD
        moved = sent(name, length, devices) if name in IMPLEMENTATIONS else (0, 0)
        cells = ""
        for program, flop, size in zip((attend, with_gradients(attend)), work, moved):
          try:
            seconds = median(jax.jit(program, compiler_options=options), *operands)
          except (jax.errors.JaxRuntimeError, ValueError) as error:
            cells += f" {str(error).splitlines()[0][:35]:>35}"
            continue
          rate = flop / devices / seconds
          share = f"{rate / info.bf16_ops_per_second / info.num_cores:.1%}" if info else "-"
          cells += f" {seconds * 1e3:11.2f} {rate / 1e12:8.3g} {share:>6} {size / seconds / 1e9:7.3g}"
        print(f"{length:7} {mask:7} {name:24} {devices:3}{cells}", flush=True)


def memories(chips: Sequence[str]) -> None:
  """Prints the megabytes that forward and backward need on each of a few chips beside arguments and results, and how
  many of the ring's transfers a kernel hides. Needs libtpu, no TPU."""
  print(f"{'chips':11} {'implementation':24} {'temporary MB':>12} {'hidden':>8}   ({COMPILED} slots)")
  for name in chips:
    topology = CHIPS[name].topology
    mesh = ring_of(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    for implementation in IMPLEMENTATIONS:
      temporary, beside = compiled(implementation, mesh, COMPILED)
      hidden = f"{sum(map(bool, beside))} of {len(beside)}" if beside else "-"
      print(f"{topology:11} {implementation:24} {temporary / 2**20:12.1f} {hidden:>8}", flush=True)


def compiled(implementation: str, mesh: Mesh, length: int) -> tuple[int, list[tuple[str, ...]]]:
  """(temporary bytes of a device, the kernels beside which each permute travels)."""
  make = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(  # noqa: E731
    (1, length, *shape), dtype, sharding=NamedSharding(mesh, SLOTS)
  )
  q, k, slots = make(HEADS, HEAD_DIM), make(KV_HEADS, HEAD_DIM), make(dtype=jnp.int32)
  with jax.set_mesh(mesh):
    lowered = jax.jit(with_gradients(over_ring(implementation, mesh, BLOCK))).lower(q, k, k, slots, slots)
  with tempfile.TemporaryDirectory() as folder:
    # Not `as_text`, which fails on a collective that the compiler hands to the sparse core.
    options: dict[str, str | bool] = {**COMPILER_OPTIONS, "xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    memory = lowered.compile(compiler_options=options).memory_analysis()
    assert memory is not None
    (path,) = Path(folder).glob("*.after_optimizations.txt")
    return memory.temp_size_in_bytes, [transfer.beside for transfer in transfers(path.read_text())]

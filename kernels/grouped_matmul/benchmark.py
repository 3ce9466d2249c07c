"""grouped_matmul beside megablox and tokamax: the compiler's memory and schedule for each TPU, or time on this machine.

The experts of Qwen3-30B-A3B: 128 groups, 2048 to 768, bfloat16; 65,536 rows are 8,192 tokens with 8 experts each.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from qwenlong_jax.kernels import schedule
from qwenlong_jax.kernels.grouped_matmul import COMPILER_OPTIONS, grouped_matmul
from qwenlong_jax.kernels.schedule import CHIPS, Case
from qwenlong_jax.kernels.timing import backend, median

ROWS, GROUPS, INNER, OUTER = 65536, 128, 2048, 768
PRODUCTS = {  # the product's name -> dimensions that it contracts, of the operands
  "forward": (1, 1),
  "rows": (1, 2),
  "weights": (0, 0),
}
Tile = tuple[int, int, int]  # rows, contracted, columns at a time; of "weights" its result's two dimensions
ON_V5: dict[str, Tile] = {"forward": (128, 2048, 768), "rows": (128, 768, 2048), "weights": (128, 2048, 384)}
XLA_ON_V5: dict[str, Tile] = {"forward": (128, 2048, 640), "rows": (128, 768, 1664), "weights": (128, 2048, 256)}
ON_V6: dict[str, Tile] = {"forward": (256, 2048, 768), "rows": (256, 768, 2048), "weights": (256, 2048, 768)}
LENGTHS = {"tpu": (8192, 65536), "gpu": (8192, 65536), "cpu": (512, 4096)}


def _shapes(product: str) -> tuple[tuple[tuple[int, ...], jnp.dtype], ...]:
  rows, gradient, weights = (ROWS, INNER), (ROWS, OUTER), (GROUPS, INNER, OUTER)
  pair = {"forward": (rows, weights), "rows": (gradient, weights), "weights": (rows, gradient)}[product]
  return *((shape, jnp.bfloat16) for shape in pair), ((GROUPS,), jnp.int32)


def _product(source: str, product: str, tile: Tile) -> Callable:
  if source == "xla":
    contracted = tuple((dimension,) for dimension in PRODUCTS[product])
    grouped = () if product == "weights" else (0,)
    numbers = jax.lax.RaggedDotDimensionNumbers((contracted, ((), ())), (0,), grouped)

    def ragged(a: Array, b: Array, sizes: Array) -> Array:
      with set_xla_metadata(ragged_dot_tiling=",".join(map(str, tile))):
        return jax.lax.ragged_dot_general(a, b, sizes, numbers, preferred_element_type=a.dtype)

    return ragged
  kernels = importlib.import_module(
    "jax.experimental.pallas.ops.tpu.megablox.gmm"
    if source == "megablox"
    else "tokamax._src.ops.ragged_dot.pallas_mosaic_tpu_kernel"
  )
  dtype = "preferred_element_type" if source == "megablox" else "out_dtype"
  options: dict = {dtype: jnp.bfloat16, "tiling": tile}
  if source == "tokamax":
    options["precision"] = jax.lax.Precision.DEFAULT
  if product == "weights":
    return lambda a, b, sizes: kernels.tgmm(a.mT, b, sizes, **options)
  return lambda a, b, sizes: kernels.gmm(a, b, sizes, transpose_rhs=product == "rows", **options)


def case(source: str, product: str, tile: Tile) -> Case:
  """FLOP of a step: the product's over its steps, if every group begins inside a block of rows."""
  inner, outer = (OUTER, INNER) if product == "rows" else (INNER, OUTER)
  steps = (ROWS // tile[0] + GROUPS - 1) * -(-inner // tile[1]) * -(-outer // tile[2])
  kernel = {"xla": "ragged-dot-none", "megablox": "gmm", "tokamax": "gmm_megablox"}[source]
  return Case(_product(source, product, tile), _shapes(product), {kernel: 2 * ROWS * INNER * OUTER // steps})


CASES: dict[str, Callable[[], Case]] = {
  f"{source}, {name}: {product}": functools.partial(case, source, product, tiles[product])
  for source, name, tiles in (
    ("xla", "XLA's tiles on v5", XLA_ON_V5),
    *((s, n, t) for n, t in (("ours on v5", ON_V5), ("ours on v6e", ON_V6)) for s in ("xla", "megablox", "tokamax")),
  )
  if source != "tokamax" or importlib.util.find_spec("tokamax")
  for product in PRODUCTS
}


def schedules(chips: Sequence[str]) -> None:
  """Prints the bound on the MXU's use over each product, XLA with the option that v5e and v6e need."""
  print(f"{'chip':5} {'kernels':32} " + " ".join(f"{product:>9}" for product in PRODUCTS))
  for name in chips:
    for kernels in dict.fromkeys(key.split(":")[0] for key in CASES):
      cells = []
      for product in PRODUCTS:
        try:
          (bodies,) = schedule.bounds(__name__, f"{kernels}: {product}", name, COMPILER_OPTIONS).values()
          cells.append(f"{bodies[0]:9.1%}")
        except RuntimeError as error:
          cells.append(f"{str(error)[:40]:>9}")
      print(f"{name:5} {kernels:32} " + " ".join(cells), flush=True)


def memories(chips: Sequence[str]) -> None:
  """Prints the memory that forward and backward need beside operands and results, and the FLOP that XLA counts."""
  print(f"{'chip':5} {'implementation':24} {'temporary MB':>12} {'FLOP / needed':>13}")
  for name in chips:
    devices = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[name].topology).devices
    mesh = Mesh(devices[:1], ("one",))
    whole = NamedSharding(mesh, PartitionSpec())
    shapes = [((ROWS, INNER), jnp.bfloat16), ((GROUPS, INNER, OUTER), jnp.bfloat16), ((GROUPS,), jnp.int32)]
    args = [jax.ShapeDtypeStruct(*x, sharding=whole) for x in (*shapes, ((ROWS, OUTER), jnp.bfloat16))]
    for label, multiply in contenders("tpu").items():
      for options in ({}, COMPILER_OPTIONS) if name in ("v5e", "v6e") and "megablox" not in label else ({},):
        with jax.set_mesh(mesh):
          lowered = jax.jit(_both(multiply)).lower(*args)
        compiled = lowered.compile(compiler_options=dict[str, str | bool](options))
        # Of a kernel written in Pallas it is told; of one that expands to all groups it counts them.
        flop = (compiled.cost_analysis() or {})["flops"] / (3 * 2 * ROWS * INNER * OUTER)
        memory = compiled.memory_analysis()
        assert memory is not None
        temporary = memory.temp_size_in_bytes / 2**20
        print(f"{name:5} {label + (' with option' if options else ''):24} {temporary:12.1f} {flop:13.1f}", flush=True)


def times(lengths: Sequence[int]) -> None:
  """Prints milliseconds, TFLOP/s and GB of operands and results of forward, and of both; `lengths` in rows."""
  groups, inner, outer = (GROUPS, INNER, OUTER) if backend() != "cpu" else (16, 64, 32)
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; {groups} groups, {inner} to {outer}")
  print(f"{'rows':>7} {'implementation':24} {'forward ms':>11} {'TFLOP/s':>8} {'both ms':>11} {'TFLOP/s':>8} {'GB':>8}")
  for length in lengths or LENGTHS[backend()]:
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (length, inner), (groups, inner, outer), (length, outer)
    rows, weights, gradient = (jax.random.normal(key, x, jnp.bfloat16) for key, x in zip(keys, shapes))
    sizes = jnp.bincount(jax.random.randint(keys[3], (length,), 0, groups), length=groups).astype(jnp.int32)
    size = (rows.nbytes + weights.nbytes + gradient.nbytes) / 1e9
    for name, multiply in contenders(backend()).items():
      flops, cells = 2 * length * inner * outer, ""
      for program, args, work in (
        (jax.jit(multiply), (rows, weights, sizes), flops),
        (jax.jit(_both(multiply)), (rows, weights, sizes, gradient), 3 * flops),
      ):
        seconds = median(program, *args)
        cells += f" {seconds * 1e3:11.2f} {work / seconds / 1e12:8.3g}"
      print(f"{length:7} {name:24}{cells} {size:8.3g}", flush=True)


def _both(multiply: Callable) -> Callable:
  def both(rows: Array, weights: Array, sizes: Array, gradient: Array) -> tuple:
    out, vjp = jax.vjp(lambda rows, weights: multiply(rows, weights, sizes), rows, weights)
    return out, vjp(gradient)

  return both


def contenders(machine: str) -> dict[str, Callable]:
  ours = "xla" if machine == "tpu" else "blocks"
  found: dict[str, Callable] = {
    f"ours ({ours})": functools.partial(grouped_matmul, implementation=ours),
    "lax.ragged_dot": jax.lax.ragged_dot,
  }
  if machine == "tpu":
    megablox = importlib.import_module("jax.experimental.pallas.ops.tpu.megablox").gmm
    tiles = (128, 1024, 768)  # one for all three products
    found["megablox"] = lambda rows, weights, sizes: megablox(rows, weights, sizes, rows.dtype, tiles)
  if importlib.util.find_spec("tokamax"):
    import tokamax

    found["tokamax (xla)"] = functools.partial(tokamax.ragged_dot, implementation="xla")
  return found

"""Attention, forward and backward, compiled by libtpu for real chips, on a CPU. `pytest -s` prints the memory."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from qwenlong_jax.kernels import chip
from qwenlong_jax.kernels.flash_attention import flash_attention
from qwenlong_jax.kernels.ring_attention import COMPILER_OPTIONS, ring_attention
from qwenlong_jax.kernels.schedule import CHIPS, transfers

if importlib.util.find_spec("libtpu") is None:
  pytest.skip("libtpu, the TPU compiler, is not installed: pip install libtpu", allow_module_level=True)


def gradient_of(attend, mesh, spec, length, heads, kv_heads, head_dim, dtype=jnp.bfloat16):
  """The lowered gradient of a sum over `attend`(q, k, v, segment, position)."""
  shape = lambda *sizes, dtype=dtype: jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, spec))  # noqa: E731
  q, k = shape(1, length, heads, head_dim), shape(1, length, kv_heads, head_dim)
  slots = shape(1, length, dtype=jnp.int32)
  loss = lambda q, k, v, *slots: attend(q, k, v, *slots).astype(jnp.float32).sum()  # noqa: E731
  with jax.set_mesh(mesh):
    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k, slots, slots)


def mesh_of(topology, count=None):
  devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[:count]
  return Mesh(np.array(devices), ("ring",), axis_types=(AxisType.Auto,))


slow = pytest.mark.slow
TOPOLOGIES = {name: chip.topology for name, chip in CHIPS.items()} | {"tpu7x": "tpu7x:2x2x1"}


@pytest.mark.parametrize(
  "name, length, heads, kv_heads, head_dim",
  [
    ("v6e", 2048, 8, 2, 64),
    pytest.param("v5e", 32768, 32, 4, 128, marks=slow),
    pytest.param("v5p", 32768, 32, 4, 128, marks=slow),
    pytest.param("v6e", 32768, 32, 4, 128, marks=slow),
    pytest.param("v5p", 262144, 32, 4, 128, marks=slow),
    pytest.param("v5p", 8192, 8, 2, 256, marks=slow),
    pytest.param("v6e", 8192, 8, 2, 256, marks=slow),
    pytest.param("v5p", 8192, 8, 8, 128, marks=slow),
    pytest.param("v6e", 8192, 8, 8, 128, marks=slow),
    pytest.param("v5p", 8192, 16, 1, 64, marks=slow),
    pytest.param("v5p", 1000, 4, 2, 80, marks=slow),
    pytest.param("tpu7x", 32768, 32, 4, 128, marks=slow),
  ],
)
def test_both_kernels_compile_and_need_memory_of_the_order_of_the_length(name, length, heads, kv_heads, head_dim):
  lowered = gradient_of(
    flash_attention, mesh_of(TOPOLOGIES[name], 1), PartitionSpec(), length, heads, kv_heads, head_dim
  )
  for kernel in ("flash_attention_forward", "flash_attention_backward"):
    assert kernel in lowered.as_text()
  temporary = lowered.compile().memory_analysis().temp_size_in_bytes
  print(f"{name} {length=} {heads}/{kv_heads} x {head_dim}: {temporary / 2**20:.0f} MB")
  # A dozen arrays of q's size in float32, and the list of block pairs.
  assert temporary < 12 * 4 * length * heads * -(-head_dim // 128) * 128 + 2**23


@pytest.mark.parametrize(
  "name, length, heads, kv_heads, head_dim",
  [
    ("v5p", 512, 4, 2, 128),
    pytest.param("v5p", 4096, 32, 4, 256, marks=slow),
    pytest.param("v6e", 4096, 32, 4, 128, marks=slow),
    pytest.param("tpu7x", 4096, 32, 4, 128, marks=slow),
  ],
)
def test_float32_compiles(name, length, heads, kv_heads, head_dim):
  gradient_of(
    flash_attention, mesh_of(TOPOLOGIES[name], 1), PartitionSpec(), length, heads, kv_heads, head_dim, jnp.float32
  ).compile()


def test_bfloat16_compiles_where_float32_products_are_asked_for():
  with jax.default_matmul_precision("highest"):
    gradient_of(flash_attention, mesh_of("v5p:2x2x1", 1), PartitionSpec(), 512, 4, 2, 128).compile()


@pytest.mark.parametrize(
  "topology, length",
  [
    ("v5p:2x2x1", 32768),
    pytest.param("v5p:2x2x4", 262144, marks=slow),
    pytest.param("v5p:2x2x4", 1048576, marks=slow),
    pytest.param("v6e:4x4", 262144, marks=slow),
    pytest.param("v6e:8x8", 1048576, marks=slow),
    pytest.param("v6e:2x2", 32768, marks=slow),
    pytest.param("v5e:4x4", 262144, marks=slow),
    pytest.param(
      "tpu7x:2x2x1",
      262144,
      marks=[slow, pytest.mark.xfail(strict=True, raises=AssertionError, reason="two transfers are not hidden")],
    ),
  ],
)
def test_the_rings_transfers_travel_while_the_kernels_compute(topology, length, tmp_path):
  """In the compiler's schedule each starts before a kernel and ends after it: keys forward, and backward keys and their
  gradients."""
  mesh, spec = mesh_of(topology), PartitionSpec(None, "ring")
  attend = jax.shard_map(
    functools.partial(ring_attention, axis="ring", implementation="ring"),
    mesh=mesh, in_specs=(spec,) * 5, out_specs=spec,
  )  # fmt: skip
  # Not `as_text`, which fails on a collective that the compiler hands to the sparse core.
  dump = {"xla_dump_to": str(tmp_path), "xla_dump_hlo_as_text": True}
  compiled = gradient_of(attend, mesh, spec, length, 32, 4, 128).compile(compiler_options=COMPILER_OPTIONS | dump)
  ring = mesh.size
  shard = length // ring * 4 * 128
  memory = compiled.memory_analysis()
  print(f"{topology} ring {ring} {length=}: {memory.temp_size_in_bytes / 2**20:.0f} MB")
  # In float32: dq and out while they are added up, with what a step adds, in two layouts; keys' arrays are an eighth.
  assert memory.temp_size_in_bytes < 14 * 4 * 8 * shard
  (path,) = tmp_path.glob("*.after_optimizations.txt")
  beside = [transfer.beside for transfer in transfers(path.read_text())]
  assert sorted(beside) == [("flash_attention_backward",), ("flash_attention_backward",), ("flash_attention_forward",)]


@pytest.mark.parametrize(
  "topology", ["v5p:2x2x1", pytest.param("v6e:2x2", marks=slow), pytest.param("v5e:2x2", marks=slow)]
)
def test_gathered_keys_compile(topology):
  mesh, spec = mesh_of(topology), PartitionSpec(None, "ring")
  attend = jax.shard_map(
    functools.partial(ring_attention, axis="ring"), mesh=mesh, in_specs=(spec,) * 5, out_specs=spec
  )
  text = gradient_of(attend, mesh, spec, 8192, 8, 2, 128).compile().as_text()
  assert "flash_attention_backward" in text
  assert "all-gather" in text and "collective-permute" not in text


def test_the_chip_is_that_of_the_mesh_in_context():
  devices = topologies.get_topology_desc(platform="tpu", topology_name="v6e:2x2").devices
  assert chip.tpu() is None
  with jax.set_mesh(Mesh(np.array(devices[:1]), ("one",))):
    assert chip.tpu().mxu_column_size == 256

"""flash_attention, forward and backward, compiled by libtpu for real chips, on a CPU. `pytest -s` prints the memory."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from qwenlong_jax.kernels import chip
from qwenlong_jax.kernels.flash_attention import flash_attention
from qwenlong_jax.kernels.schedule import CHIPS

if importlib.util.find_spec("libtpu") is None:
  pytest.skip("libtpu, the TPU compiler, is not installed: pip install libtpu", allow_module_level=True)


def compile_for(name, length, heads, kv_heads, head_dim, dtype=jnp.bfloat16):
  """The compiled gradient, and the program before it was compiled."""
  devices = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[name].topology).devices
  mesh = Mesh(np.array(devices[:1]), ("one",))
  shape = lambda *sizes, dtype=dtype: jax.ShapeDtypeStruct(  # noqa: E731
    sizes, dtype, sharding=NamedSharding(mesh, PartitionSpec())
  )
  q, k = shape(1, length, heads, head_dim), shape(1, length, kv_heads, head_dim)
  slots = shape(1, length, dtype=jnp.int32)
  loss = lambda q, k, v, *slots: flash_attention(q, k, v, *slots).astype(jnp.float32).sum()  # noqa: E731
  with jax.set_mesh(mesh):
    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k, slots, slots)
    return lowered.compile(), lowered


slow = pytest.mark.slow


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
  ],
)
def test_both_kernels_compile_and_need_memory_of_the_order_of_the_length(name, length, heads, kv_heads, head_dim):
  compiled, lowered = compile_for(name, length, heads, kv_heads, head_dim)
  for kernel in ("flash_attention_forward", "flash_attention_backward"):
    assert kernel in lowered.as_text()
  temporary = compiled.memory_analysis().temp_size_in_bytes
  print(f"{name} {length=} {heads}/{kv_heads} x {head_dim}: {temporary / 2**20:.0f} MB")
  # A dozen arrays of q's size in float32, and the list of block pairs.
  assert temporary < 12 * 4 * length * heads * -(-head_dim // 128) * 128 + 2**23


def test_float32_compiles():
  compile_for("v5p", 512, 4, 2, 128, jnp.float32)


def test_the_chip_is_that_of_the_mesh_in_context():
  devices = topologies.get_topology_desc(platform="tpu", topology_name="v6e:2x2").devices
  assert chip.tpu() is None
  with jax.set_mesh(Mesh(np.array(devices[:1]), ("one",))):
    assert chip.tpu().mxu_column_size == 256

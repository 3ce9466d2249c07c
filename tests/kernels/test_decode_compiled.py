"""Decoding over a shared prefix, compiled by libtpu for real chips, on a CPU. `pytest -s` prints the memory."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from qwenlong_jax.kernels.prefix_decode import prefix_decode, write_suffix
from qwenlong_jax.kernels.schedule import CHIPS
from qwenlong_jax.models.presets import Qwen3Config
from qwenlong_jax.models.qwen3 import Qwen3

if importlib.util.find_spec("libtpu") is None:
  pytest.skip("libtpu, the TPU compiler, is not installed: pip install libtpu", allow_module_level=True)

LAYERS, G, R = 8, 8, 4096
slow = pytest.mark.slow


def mesh_of(name, count=1):
  devices = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[name].topology).devices[:count]
  return Mesh(np.array(devices), ("slots",), axis_types=(AxisType.Auto,))


def arguments(mesh, slots, heads, kv_heads, head_dim, dtype, suffix_slots=R, cut=False):
  """q, k, v, prefix, prefix_length, suffix, suffix_length, layer; `cut`: the slots over the mesh.

  The caches lie as in the sampler's loop. Left to itself the compiler takes arguments with a small D or a ragged S in
  another layout, and copies them.
  """

  def shape(*sizes, dtype=dtype, at=None):
    spec = Spec(*[None] * at, "slots") if cut and at is not None else Spec()
    sharding = NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(
      sizes, dtype, sharding=sharding if at is None else Format(Layout(tuple(range(len(sizes)))), sharding)
    )

  prefix = shape(LAYERS, 1, kv_heads, slots, head_dim, at=3)
  suffix = shape(LAYERS, 1, G, kv_heads, suffix_slots, head_dim, at=4)
  new = (shape(1, G, n, head_dim) for n in (heads, kv_heads, kv_heads))
  integer = functools.partial(shape, dtype=jnp.int32)
  return *new, (prefix, prefix), integer(1), (suffix, suffix), integer(1, G), integer()


def bytes_of(tree):
  return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  "name, slots, heads, kv_heads, head_dim, dtype",
  [
    ("v5p", 122880, 32, 4, 128, jnp.bfloat16),
    *(
      pytest.param(name, slots, heads, kv_heads, head_dim, dtype, marks=slow)
      for name in ("v5e", "v5p", "v6e")
      for slots, heads, kv_heads, head_dim, dtype in (
        (32768, 32, 4, 128, jnp.bfloat16),
        (122880, 32, 4, 128, jnp.bfloat16),
        (120001, 32, 4, 128, jnp.bfloat16),
        (32768, 16, 8, 64, jnp.bfloat16),
        (32768, 16, 2, 256, jnp.bfloat16),
        (32768, 32, 4, 128, jnp.float32),
        (32768, 4, 4, 128, jnp.bfloat16),
        (100, 8, 1, 16, jnp.float32),
      )
    ),
  ],
)
def test_the_kernel_compiles_and_copies_no_cache(name, slots, heads, kv_heads, head_dim, dtype):
  mesh = mesh_of(name)
  args = arguments(mesh, slots, heads, kv_heads, head_dim, dtype)
  with jax.set_mesh(mesh):
    lowered = jax.jit(prefix_decode).lower(*args)
  assert "prefix_decode" in lowered.as_text()
  temporary = lowered.compile().memory_analysis().temp_size_in_bytes
  print(f"{name} {slots=} {heads}/{kv_heads} x {head_dim} {dtype.__name__}: {temporary / 2**20:.2f} MB")
  # What is written of each of G * heads rows: out, and its log-sum-exp in a register's width; caches are far larger.
  assert temporary < 16 * 4 * G * heads * max(head_dim, 128) + 2**18


@pytest.mark.parametrize("name", ["v5p", pytest.param("v5e", marks=slow), pytest.param("v6e", marks=slow)])
@pytest.mark.parametrize(
  "loop, head_dim", [(False, 128), (True, 128), (True, 64)], ids=["step", "sampler's loop", "loop, heads of 64"]
)
def test_a_decode_step_of_a_model_never_copies_a_layers_cache(name, loop, head_dim):
  """8 layers, 32 heads on 4, 32,768 prefix and 8 x 4,096 suffix slots: 128 MB a layer with heads of 128. The loop also
  writes the new keys and values into the caches that it was given."""
  config = Qwen3Config(
    vocab_size=1024, hidden_size=128, num_hidden_layers=LAYERS, num_attention_heads=32, num_key_value_heads=4,
    head_dim=head_dim, intermediate_size=256,
  )  # fmt: skip
  mesh = mesh_of(name)
  *_, prefix, prefix_length, suffix, suffix_length, _ = arguments(mesh, 32768, 32, 4, head_dim, jnp.bfloat16)
  model = lambda: Qwen3(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)  # noqa: E731
  graph, params = nnx.split(nnx.eval_shape(model))
  whole = NamedSharding(mesh, Spec())
  params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), params)
  tokens = jax.ShapeDtypeStruct((1, G), jnp.int32, sharding=whole)

  def step(params, tokens, prefix, prefix_length, suffix, suffix_length):
    net = nnx.merge(graph, params)
    positions = prefix_length[:, None] + suffix_length
    hidden, new, _ = net.decode(tokens, positions, prefix, prefix_length, suffix, suffix_length)
    return net.logits(hidden).argmax(-1).astype(jnp.int32), new

  def steps(params, tokens, prefix, prefix_length, suffix, suffix_length):
    def advance(i, state):
      tokens, suffix = state
      count = jnp.broadcast_to(i, suffix_length.shape)
      tokens, new = step(params, tokens, prefix, prefix_length, suffix, count)
      return tokens, write_suffix(suffix, new, i)

    return jax.lax.fori_loop(0, suffix_length.max(), advance, (tokens, suffix))

  with jax.set_mesh(mesh):
    # Where the caches are returned they lie as they were given, else they could not be the same memory.
    lies = suffix[0].format
    program = jax.jit(steps, donate_argnums=4, out_shardings=(whole, (lies, lies))) if loop else jax.jit(step)
    compiled = program.lower(params, tokens, prefix, prefix_length, suffix, suffix_length).compile()
  temporary, layer = compiled.memory_analysis().temp_size_in_bytes, bytes_of((prefix, suffix)) / LAYERS
  print(f"{name} {loop=} {head_dim=}: {temporary / 2**20:.2f} MB beside a layer's cache of {layer / 2**20:.0f} MB")
  assert temporary < 0.2 * layer


@pytest.mark.parametrize("name", ["v5p", pytest.param("v5e", marks=slow), pytest.param("v6e", marks=slow)])
def test_a_prefix_cut_over_four_chips_compiles(name):
  """Beside the kernels there is one exchange of a few rows, in which no cache takes part."""
  mesh = mesh_of(name, 4)
  args = arguments(mesh, 122880, 32, 4, 128, jnp.bfloat16, cut=True)
  specs = jax.tree.map(lambda x: x.sharding.spec, args)
  local = functools.partial(prefix_decode, axis="slots")
  with jax.set_mesh(mesh):
    compiled = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=Spec())).lower(*args).compile()
  text, temporary = compiled.as_text(), compiled.memory_analysis().temp_size_in_bytes
  print(f"{name}: {temporary / 2**20:.2f} MB")
  assert "prefix_decode" in text and "all-reduce" in text
  assert "all-gather" not in text and "all-to-all" not in text
  assert temporary < 2**22


def test_bfloat16_compiles_where_float32_products_are_asked_for():
  mesh = mesh_of("v5p")
  with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
    jax.jit(prefix_decode).lower(*arguments(mesh, 1024, 8, 2, 128, jnp.bfloat16)).compile()

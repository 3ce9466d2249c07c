"""The experts' products, the sparse layer and its form cut over devices, compiled by libtpu for real chips, on a CPU.

`pytest -s` prints the memory.
"""

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from qwenlong_jax.kernels.grouped_matmul import COMPILER_OPTIONS, grouped_matmul
from qwenlong_jax.kernels.schedule import CHIPS, ENVIRONMENT
from qwenlong_jax.models import moe

if importlib.util.find_spec("libtpu") is None:
  pytest.skip("libtpu, the TPU compiler, is not installed: pip install libtpu", allow_module_level=True)

slow = pytest.mark.slow
T, K, E, D, F = 8192, 8, 128, 2048, 768  # a layer of Qwen3-30B-A3B
MB = 2**20


def compiled(topology, count, function, shapes, options=COMPILER_OPTIONS):
  """`function` of operands whose first dimension is cut over `count` devices."""
  devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[:count]
  mesh = Mesh(np.array(devices), ("experts",), axis_types=(AxisType.Auto,))
  cut = NamedSharding(mesh, PartitionSpec("experts"))
  arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=cut) for shape, dtype in shapes]
  with jax.set_mesh(mesh):
    return jax.jit(function(mesh)).lower(*arguments).compile(compiler_options=options)


def product(rows, groups, inner, outer):
  shapes = ((rows, inner), jnp.bfloat16), ((groups, inner, outer), jnp.bfloat16), ((groups,), jnp.int32)

  def both(rows, weights, sizes, gradient):
    out, vjp = jax.vjp(lambda rows, weights: grouped_matmul(rows, weights, sizes), rows, weights)
    return out, vjp(gradient)

  return lambda _: both, (*shapes, ((rows, outer), jnp.bfloat16))


def layer(apply, tokens=T):
  """Forward with all gradients; `apply` makes of a mesh the layer's function."""
  float_shapes = (tokens, D), (tokens, E), (E, D, F), (E, D, F), (E, F, D), (tokens, D)
  x, weights, *matrices, cotangent = ((shape, jnp.bfloat16) for shape in float_shapes)

  def both(mesh, x, weights, experts, *matrices):
    *matrices, cotangent = matrices
    out, vjp = jax.vjp(lambda x, w, *m: apply(mesh)(x, w, experts, *m), x, weights, *matrices)
    return out, vjp(cotangent)

  shapes = x, weights, ((tokens, K), jnp.int32), *matrices, cotangent
  return lambda mesh: functools.partial(both, mesh), shapes


@pytest.mark.parametrize(
  "name, rows, groups, inner, outer",
  [
    ("v5p", 2048, 16, 256, 384),
    ("v5p", 65536, 128, 2048, 768),
    pytest.param("v5e", 65536, 128, 2048, 768, marks=slow),
    pytest.param("v6e", 65536, 128, 2048, 768, marks=slow),
    pytest.param("v5p", 65536, 32, 4096, 1536, marks=slow),
    pytest.param("v6e", 65536, 32, 4096, 1536, marks=slow),
    pytest.param("v5p", 1000, 16, 256, 384, marks=slow),
    pytest.param("v5p", 22, 16, 64, 32, marks=slow),
  ],
)
def test_products_are_kernels_that_do_the_groups_own_work_in_no_memory(name, rows, groups, inner, outer):
  program = compiled(CHIPS[name].topology, 1, *product(rows, groups, inner, outer))
  temporary = program.memory_analysis().temp_size_in_bytes
  print(f"{name} {rows} rows, {groups} groups, {inner} to {outer}: {temporary / MB:.1f} MB")
  tiles = re.findall(r'ragged-dot-none\S* = .*ragged_dot_tiling="([\d,]*)"', program.as_text())
  assert len(tiles) == 3
  for _, contracted, columns in (map(int, tile.split(",")) for tile in tiles):
    assert not any(size % cut for size, cut in ((inner * outer, contracted), (inner * outer, columns)))
  padded = 0 if rows % 256 == 0 else 3 * 2 * (rows + 256) * (inner + outer)
  assert temporary < 2 * MB + padded


def test_without_the_option_v5e_multiplies_all_rows_with_all_groups():
  """Why COMPILER_OPTIONS must be given there; if this fails they may be needed no longer."""
  needed = 3 * 2 * 2048 * 256 * 384
  for options, least, most in (({}, 15, 20), (COMPILER_OPTIONS, 0, 2)):
    program = compiled("v5e:2x2", 1, *product(2048, 16, 256, 384), options)
    assert least < program.cost_analysis()["flops"] / needed < most


@slow
@pytest.mark.parametrize("name", ["v5p", "v5e", "v6e"])
def test_the_sparse_layer_compiles_in_the_memory_of_its_rows(name):
  program = compiled(CHIPS[name].topology, 1, *layer(lambda _: moe.chosen_experts))
  temporary = program.memory_analysis().temp_size_in_bytes
  print(f"{name} {T} tokens: {temporary / MB:.0f} MB")
  # Rows of D (in, out, their gradients, gathered back) and of F (two products, hidden, their gradients) in bfloat16.
  assert temporary < 2 * T * K * (5 * D + 7 * F)


PROGRAM = """
import functools, json, sys
sys.path.insert(0, sys.argv[1])
import jax
from jax.sharding import PartitionSpec as P
from qwenlong_jax.kernels import ring_attention
from test_experts_compiled import COMPILER_OPTIONS, compiled, layer
from qwenlong_jax.models import moe

def apply(mesh):
  run = functools.partial(moe.expert_parallel, axis="experts")
  return jax.shard_map(run, mesh=mesh, in_specs=(P("experts"),) * 6, out_specs=P("experts"))

options = COMPILER_OPTIONS | ring_attention.COMPILER_OPTIONS
program = compiled("v5p:2x2x1", 4, *layer(apply, 4 * 8192), options)
print(json.dumps(program.memory_analysis().temp_size_in_bytes))
"""


@slow
def test_experts_cut_over_devices_compile_and_the_gradients_transfers_travel_during_the_products(tmp_path):
  """8,192 tokens and 32 experts a device. In the backward loop the large transfers start before the first product and
  end after the last. The compiler starts the forward loop's after its products: they travel during the gather only."""
  flags = f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text"  # as_text() fails on programs with offloaded gathers
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, os.path.dirname(__file__)],
    env=os.environ | ENVIRONMENT | {"XLA_FLAGS": flags}, capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-4000:]
  temporary = json.loads(done.stdout.splitlines()[-1])
  print(f"v5p ring 4, {T} tokens a device: {temporary / MB:.0f} MB")
  own = 2 * T * K * (5 * D + 7 * F)  # what the layer needs on its own shard, as above
  assert temporary < own + 12 * 4 * T * D + 2 * 4 * 3 * E // 4 * D * F

  text = max((path.read_text() for path in tmp_path.glob("*after_optimizations.txt")), key=len)
  bodies = re.findall(r"^%?\S+ [^\n]*\{\n(.*?)^\}", text, re.M | re.S)
  loops = [body for body in bodies if "ragged-dot-none" in body]
  forward, backward = sorted(loops, key=lambda body: len(re.findall(r"%ragged-dot-none\S* =", body)))
  for body, products, permutes in ((forward, 3, 3), (backward, 8, 4)):
    at = lambda name, body=body: [m.start() for m in re.finditer(rf"%{name}\S* =", body)]  # noqa: E731
    assert len(at("ragged-dot-none")) == products
    starts, ends = at("collective-permute-start"), at("collective-permute-done")
    assert len(starts) == len(ends) == permutes
  kernels = at("ragged-dot-none")
  assert max(starts) < min(kernels)
  assert sum(end > max(kernels) for end in ends) == 3  # the fourth is [T K] floats

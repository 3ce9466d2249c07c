"""token_stats with its gradients compiled by libtpu for real chips, on a CPU. `pytest -s` prints the memory."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from qwenlong_jax.kernels.schedule import CHIPS
from qwenlong_jax.kernels.token_stats import token_stats

if importlib.util.find_spec("libtpu") is None:
  pytest.skip("libtpu, the TPU compiler, is not installed: pip install libtpu", allow_module_level=True)

D, V = 2048, 151936
slow = pytest.mark.slow


def temporary(name, tokens, outputs, devices=1, vocabulary=None):
  """Bytes beside arguments and results, on each device, of the first `outputs` statistics with their gradients; the
  vocabulary cut over the devices."""
  axis = "model" if devices > 1 else None
  topology = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[name].topology)
  mesh = Mesh(np.array(topology.devices[:devices]), ("model",), axis_types=(AxisType.Auto,))
  shape = lambda sizes, dtype, *spec: jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, P(*spec)))  # noqa: E731

  def gradients(hidden, head, target, *upstream):
    stats = lambda hidden, head: token_stats(hidden, head, target, 0.7, axis=axis, vocabulary=vocabulary)[:outputs]  # noqa: E731
    out, vjp = jax.vjp(stats, hidden, head)
    return out, vjp(upstream)

  columns = P(None, "model")
  program = jax.shard_map(
    gradients, mesh=mesh, in_specs=(P(), columns, *[P()] * (1 + outputs)), out_specs=(P(), (P(), columns))
  )
  with jax.set_mesh(mesh):
    lowered = jax.jit(program if axis else gradients).lower(
      shape((tokens, D), jnp.bfloat16),
      shape((D, V), jnp.bfloat16, *(columns if axis else ())),
      shape((tokens,), jnp.int32),
      *[shape((tokens,), jnp.float32)] * outputs,
    )
  found = lowered.compile().memory_analysis().temp_size_in_bytes
  print(f"{name} {tokens=} {outputs=} {devices=} {vocabulary=}: {found / 1e6:.1f} MB")
  return found


@pytest.mark.parametrize(
  "name, outputs",
  [
    ("v5p", 2),
    pytest.param("v5p", 1, marks=slow),
    pytest.param("v5e", 2, marks=slow),
    pytest.param("v5e", 1, marks=slow),
    pytest.param("v6e", 2, marks=slow),
    pytest.param("v6e", 1, marks=slow),
  ],
)
def test_gradients_need_a_hundred_megabytes(name, outputs):
  """With 67 MB that the gradient of the hidden states takes in float32; the logits would be 4,979 MB."""
  assert temporary(name, 8192, outputs) <= 100e6


@slow
@pytest.mark.parametrize("name", ["v5p", "v6e"])
@pytest.mark.parametrize("tokens", [65536, 131072])
def test_with_more_tokens_only_the_gradient_of_the_hidden_states_grows(name, tokens):
  assert temporary(name, tokens, 2) <= 4 * tokens * D + 64e6


@slow
@pytest.mark.parametrize("name", ["v5p", "v6e"])
@pytest.mark.parametrize("vocabulary", [None, 151669])
def test_a_vocabulary_over_four_devices_adds_the_sum_of_the_hidden_states_gradients(name, vocabulary):
  """Its 34 MB in bfloat16, before they are summed. A device's 37,984 columns are no multiple of the TPU's 128."""
  assert temporary(name, 8192, 2, devices=4, vocabulary=vocabulary) <= 135e6

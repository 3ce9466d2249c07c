"""The programs of a training step compiled for real TPU topologies, by libtpu's compiler, on this CPU.

What the chip's compiler refuses (a shape it cannot tile, memory past its HBM) fails here, without a chip. `pytest -s`
prints the memory per chip.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwenlong_jax.kernels.schedule import ENVIRONMENT

if importlib.util.find_spec("libtpu") is None:
  pytest.skip("libtpu, the TPU compiler, is not installed: pip install libtpu", allow_module_level=True)

HBM = 15 * 2**30  # below what the smallest chip here, v5e, has
MODELS = {
  "tiny": {"dtype": "float32", "slots": 104, "responses": 48, "group": 8},
  "heads of 128": {"dtype": "bfloat16", "slots": 512, "responses": 128, "group": 4},
  "heads of 128, experts grouped": {"dtype": "bfloat16", "slots": 512, "responses": 128, "group": 4},
}

PROGRAM = """
import json, sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from qwenlong_jax.models.presets import PRESETS, Qwen3Config
from qwenlong_jax.models.qwen3 import Qwen3
from qwenlong_jax.parallelism import rules
from qwenlong_jax.rl.learner import Learner
from qwenlong_jax.rollout.engine import Engine, Sampling
from qwenlong_jax.types import Prompts, TrainBatch

topology, name, settings = json.loads(sys.argv[1])
devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
dense = Qwen3Config(
  vocab_size=4096, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=128,
  intermediate_size=512,
)
config = {
  "tiny": PRESETS["tiny"],
  "heads of 128": dense,
  "heads of 128, experts grouped": replace(dense, num_experts=16, num_experts_per_tok=4, moe_intermediate_size=128),
}[name]
prompts, slots, group, responses = 2 * len(devices), settings["slots"], settings["group"], settings["responses"]

def create(key):
  return Qwen3(config, rngs=nnx.Rngs(key), dtype=jnp.dtype(settings["dtype"]), remat=True)

def shape(*sizes, dtype=jnp.int32, sharding=rules.rows(mesh)):
  return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

learner = Learner(create, optax.adamw(1e-3), mesh, temperature=0.7, micro_rows=1)
engine, state, whole = Engine(learner.graph, mesh), learner.abstract_state(), rules.replicated(mesh)
rows = shape(prompts, slots - 1 + group * responses)
weights = shape(*rows.shape, dtype=jnp.float32)
batch = TrainBatch(rows, rows, rows, rows, rows, weights, weights)
gathered = jax.tree.map(lambda x: shape(*x.shape, dtype=x.dtype, sharding=whole), state.params)
key = shape(dtype=jax.random.key(0).dtype, sharding=whole)
sampling = Sampling(0.7, 0.95, responses, (2,), 0)
questions = Prompts(shape(prompts, slots), shape(prompts))
for program, lowered in (
  ("update", learner._update.lower(state, batch)),
  ("generate", engine._run.lower(gathered, questions, key, group=group, sampling=sampling)),
):
  memory = lowered.compile().memory_analysis()
  print(json.dumps({
    "program": program,
    "kernels": sorted(k for k in ("forward", "backward") if f"flash_attention_{k}" in lowered.as_text()),
    "devices": len(devices),
    "kind": devices[0].device_kind,
    "arguments": memory.argument_size_in_bytes,
    "outputs": memory.output_size_in_bytes,
    "donated": memory.alias_size_in_bytes,
    "temporary": memory.temp_size_in_bytes,
    "state": sum(x.dtype.itemsize * int(np.prod(x.sharding.shard_shape(x.shape))) for x in jax.tree.leaves(state)),
  }), flush=True)
"""


def compile_for(topology, model):
  """Each program's memory in bytes per chip; raises with the compiler's words if it refuses."""
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, json.dumps([topology, model, MODELS[model]])],
    env=os.environ | ENVIRONMENT,
    cwd=Path(__file__).parents[1],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
  "topology, kind, model",
  [
    ("v5e:2x2", "TPU v5 lite", "heads of 128"),
    ("v5p:2x2x1", "TPU v5", "tiny"),
    pytest.param("v5p:2x2x1", "TPU v5", "heads of 128, experts grouped", marks=pytest.mark.slow),
    pytest.param("v6e:2x2", "TPU v6 lite", "heads of 128, experts grouped", marks=pytest.mark.slow),
  ],
)
def test_a_training_step_compiles_for_the_chip_and_fits(topology, kind, model):
  programs = compile_for(topology, model)
  assert [row["program"] for row in programs] == ["update", "generate"]
  for row in programs:
    print(f"{topology} {model}: {row}")
    assert (row["devices"], row["kind"]) == (4, kind)
    assert row["arguments"] + row["outputs"] - row["donated"] + row["temporary"] < HBM
  update, generate = programs
  assert (update["kernels"], generate["kernels"]) == (["backward", "forward"], ["forward"])  # Pallas', not XLA's
  assert update["donated"] >= 0.95 * update["state"]  # parameters and moments are updated where they lie

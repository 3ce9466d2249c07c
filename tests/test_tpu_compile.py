"""The programs of a training step compiled for real TPU topologies, by libtpu's compiler, on this CPU.

What the chip's compiler refuses (a shape it cannot tile, memory past its HBM) fails here, without a chip. `pytest -s`
prints the memory per chip.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qwenlong_jax.kernels.schedule import ENVIRONMENT, transfers

if importlib.util.find_spec("libtpu") is None:
  pytest.skip("libtpu, the TPU compiler, is not installed: pip install libtpu", allow_module_level=True)

HBM = 15 * 2**30  # below what the smallest chip here, v5e, has
MODELS = {
  "tiny": {"dtype": "float32", "slots": 104, "responses": 48, "group": 8},
  "heads of 128": {"dtype": "bfloat16", "slots": 512, "responses": 128, "group": 4, "ring": 2, "lanes": 1},
  "heads of 128, experts grouped": {
    "dtype": "bfloat16", "slots": 512, "responses": 128, "group": 4, "ring": 2, "lanes": 1, "record": True,
  },
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

from qwenlong_jax.models.presets import PRESETS, Qwen3Config
from qwenlong_jax.models.qwen3 import Qwen3
from qwenlong_jax.parallelism.mesh import make_mesh
from qwenlong_jax.rl.learner import Learner
from qwenlong_jax.rollout import weights
from qwenlong_jax.rollout.engine import Engine
from qwenlong_jax.rollout.sampling import Sampling

topology, name, settings = json.loads(sys.argv[1])
devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
mesh = make_mesh(ring=settings.get("ring", 1), devices=devices)
dense = Qwen3Config(
  vocab_size=4096, hidden_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=128,
  intermediate_size=512,
)
config = {
  "tiny": PRESETS["tiny"],
  "heads of 128": dense,
  "heads of 128, experts grouped": replace(dense, num_experts=16, num_experts_per_tok=4, moe_intermediate_size=128),
}[name]
prompts, slots, group, responses = 2 * mesh.shape["data"], settings["slots"], settings["group"], settings["responses"]

def create(key):
  return Qwen3(config, rngs=nnx.Rngs(key), dtype=jnp.dtype(settings["dtype"]), remat=True)

learner = Learner(create, optax.adamw(1e-3), mesh, temperature=0.7, micro_rows=1)
state, some = learner.abstract_state(), {name: settings[name] for name in ("lanes", "record") if name in settings}
engine = Engine(learner.graph, mesh, **some)
sampling = Sampling(0.7, 0.95, responses, (2,), 0)
for program, lowered in (
  ("update", learner.traced(prompts, slots - 1 + group * responses).lower()),
  ("relayout", weights.lower(state.params, mesh, jnp.dtype(settings["dtype"]))),
  ("generate", engine.lower(state.params, (prompts, slots), group=group, sampling=sampling)),
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


def compiled_by(program, *arguments, flags=""):
  """The lines of JSON that it prints; raises with the compiler's words if it refuses."""
  done = subprocess.run(
    [sys.executable, "-c", program, json.dumps(arguments)],
    env=os.environ | ENVIRONMENT | {"XLA_FLAGS": flags},
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
    # tests/stages/test_plan.py compiles the tiny model's programs for that chip as well.
    pytest.param("v5p:2x2x1", "TPU v5", "tiny", marks=pytest.mark.slow),
    pytest.param("v5p:2x2x1", "TPU v5", "heads of 128, experts grouped", marks=pytest.mark.slow),
    pytest.param("v6e:2x2", "TPU v6 lite", "heads of 128, experts grouped", marks=pytest.mark.slow),
  ],
)
def test_a_training_step_compiles_for_the_chip_and_fits(topology, kind, model):
  programs = compiled_by(PROGRAM, topology, model, MODELS[model])
  assert [row["program"] for row in programs] == ["update", "relayout", "generate"]
  for row in programs:
    print(f"{topology} {model}: {row}")
    assert (row["devices"], row["kind"]) == (4, kind)
    assert row["arguments"] + row["outputs"] - row["donated"] + row["temporary"] < HBM
  update, _, generate = programs
  assert (update["kernels"], generate["kernels"]) == (["backward", "forward"], ["forward"])  # Pallas', not XLA's
  assert update["donated"] >= 0.95 * update["state"]  # parameters and moments are updated where they lie


LONG = """
import json, sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.experimental import topologies

from qwenlong_jax.models.presets import PRESETS, Qwen3Config
from qwenlong_jax.models.qwen3 import Qwen3
from qwenlong_jax.parallelism.mesh import make_mesh
from qwenlong_jax.rl.learner import Learner

topology, ring, slots, name = json.loads(sys.argv[1])
devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
mesh = make_mesh(ring=ring, devices=devices)
small = Qwen3Config(
  vocab_size=4096, hidden_size=256, num_hidden_layers=5, num_attention_heads=4, num_key_value_heads=2, head_dim=128,
  intermediate_size=512, num_experts=16, num_experts_per_tok=4, moe_intermediate_size=128,
)
config = PRESETS[name] if name else small

def create(key):
  return Qwen3(config, rngs=nnx.Rngs(key), dtype=jnp.bfloat16, remat=True)

learner = Learner(create, optax.adamw(2e-6), mesh, temperature=0.7, micro_rows=1)
memory = learner.traced(2 * mesh.shape["data"], slots).lower().compile().memory_analysis()
print(json.dumps({
  "chip": memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  + memory.temp_size_in_bytes,
}))
"""


@pytest.mark.parametrize(
  "topology, ring, slots, model, most",
  [
    ("v5p:2x2x1", 4, 2**17, "", 2),
    pytest.param("v5p:4x4x4", 16, 176 * 1024, "qwen3-30b-a3b-thinking-2507", 22, marks=pytest.mark.slow),
  ],
)
def test_in_a_step_over_a_ring_every_transfer_is_hidden(topology, ring, slots, model, most, tmp_path):
  """In the compiler's schedule of the whole update of a model of mixed experts, slots over the ring, parameters over
  all chips: each transfer starts before an attention kernel and ends after it, forward and backward; the parameters of
  the layers are gathered asynchronously. `most` GiB per chip."""
  flags = f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text=true --xla_dump_hlo_module_re=.*step.*"
  (found,) = compiled_by(LONG, topology, ring, slots, model, flags=flags)
  print(f"{topology} ring {ring} {slots=}: {found['chip'] / 2**30:.1f} GiB per chip")
  assert found["chip"] < most * 2**30
  (path,) = tmp_path.glob("*.after_optimizations.txt")
  hlo = path.read_text()
  beside = [transfer.beside for transfer in transfers(hlo)]
  assert sorted(beside) == [("flash_attention_backward",), ("flash_attention_backward",), ("flash_attention_forward",)]
  if model:
    bodies = re.findall(r"^%?(\S+) [^\n]*\{\n(.*?)^\}", hlo, re.M | re.S)
    gathers = [name for name, body in bodies if " all-gather(" in body]
    assert gathers and all(name.startswith("called_computation") for name in gathers)  # of an asynchronous call


CACHES = """
import json, sys

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies

from qwenlong_jax.models.presets import Qwen3Config
from qwenlong_jax.models.qwen3 import Qwen3
from qwenlong_jax.parallelism.mesh import make_mesh
from qwenlong_jax.rollout.engine import Engine
from qwenlong_jax.rollout.lanes import lane_bytes
from qwenlong_jax.rollout.sampling import Sampling

ring, layers, lanes, slots, responses, group = json.loads(sys.argv[1])
mesh = make_mesh(ring=ring, devices=topologies.get_topology_desc(platform="tpu", topology_name="v5p:2x2x1").devices)
config = Qwen3Config(
  vocab_size=1024, hidden_size=128, num_hidden_layers=layers, num_attention_heads=32, num_key_value_heads=4,
  head_dim=128, intermediate_size=256,
)
graph, params = nnx.split(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)))
engine = Engine(graph, mesh, lanes=lanes)
sampling = Sampling(0.7, 0.95, responses, (2,), 0)
lowered = engine.lower(params, (2 * lanes * mesh.shape["data"], slots), group=group, sampling=sampling)
print(json.dumps({
  "temporary": lowered.compile().memory_analysis().temp_size_in_bytes,
  "caches": lanes * lane_bytes(config, slots, responses, group, ring, 512, 2),
  "prefix": lane_bytes(config, slots, 0, 0, ring, 512, 2),
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("ring", [1, 4])
def test_sampling_with_lanes_copies_no_cache(ring):
  """Six groups at once: for every layer there is room beside their caches for a prompt that is prefilled, not for their
  prefixes. What a layer computes is there once, however many there are."""
  few, many = (compiled_by(CACHES, ring, layers, 6, ring * 8192, 1024, 8)[0] for layers in (4, 8))
  grown = {name: many[name] - few[name] for name in few}
  print({name: f"{size / 2**20:.0f} MB" for name, size in grown.items()})
  assert grown["temporary"] < grown["caches"] + 1.5 * grown["prefix"]
  assert many["temporary"] < many["caches"] + 4 * many["prefix"]

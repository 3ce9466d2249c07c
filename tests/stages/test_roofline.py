"""The bytes that the formulas count, against the collectives of the programs themselves; a step against hand-worked."""

import math
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from qwenlong_jax.kernels.ring_attention import ring_attention
from qwenlong_jax.models import costs
from qwenlong_jax.models.presets import PRESETS, Qwen3Config
from qwenlong_jax.models.qwen3 import Qwen3
from qwenlong_jax.parallelism import rules
from qwenlong_jax.parallelism.chips import CHIPS, Chip, chip_of
from qwenlong_jax.parallelism.mesh import make_mesh
from qwenlong_jax.rl.learner import Learner
from qwenlong_jax.stages import roofline
from qwenlong_jax.stages.roofline import Load, Phase, Use

SMALL = Qwen3Config(
  vocab_size=512, hidden_size=64, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
  intermediate_size=128, num_experts=16, num_experts_per_tok=4, moe_intermediate_size=32, mlp_only_layers=(5,),
)  # fmt: skip


def travelling(jaxpr, times=1):
  """Bytes that each kind of collective takes (scattered, passed) or gives (gathered), those of scans as often as they
  run, of a loop over rows once. Integers, which are few, left out."""
  total = Counter()
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    arrays = equation.outvars if name.startswith("all_gather") else equation.invars
    kinds = {"all_gather": "gathered", "reduce_scatter": "scattered", "ppermute": "passed", "psum": "summed"}
    for kind in (kind for start, kind in kinds.items() if name.startswith(start)):
      shapes = [x.aval for x in arrays if jnp.issubdtype(x.aval.dtype, jnp.floating)]
      total[kind] += times * sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes)
    repeated = times * (equation.params["length"] if name == "scan" else 1)
    for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        total += travelling(inner, repeated)
  return total


@pytest.mark.parametrize("remat", [True, False])
def test_what_travels_in_a_row_of_learning_is_what_was_counted(remat):
  ring, slots = 4, 2**17
  mesh = make_mesh(1, ring, jax.devices()[:ring])

  def create(key):
    return Qwen3(SMALL, rngs=nnx.Rngs(key), dtype=jnp.bfloat16, remat=remat)

  learner = Learner(create, optax.sgd(1.0), mesh, temperature=1.0, micro_rows=1)
  found = travelling(learner.traced(2, slots).jaxpr.jaxpr)
  gathered, scattered, passed = roofline.learn_traffic(SMALL, slots // ring, ring, remat)
  assert found["passed"] == passed
  # Without remat a layer's parameters are kept from the forward pass or gathered again, as the compiler likes.
  assert found["gathered"] == gathered and found["scattered"] == scattered


def inside_a_ring(program, ring, *arguments):
  """The collectives of `program`(model, *arguments), with parameters as they lie for decoding."""
  mesh = make_mesh(1, ring, jax.devices()[:ring])
  model = nnx.eval_shape(lambda: Qwen3(SMALL, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
  graph, params = nnx.split(model)
  cut = jax.shard_map(
    lambda params, *arguments: program(nnx.merge(graph, params), *arguments),
    mesh=mesh,
    in_specs=(rules.decoding(params, mesh), *[PartitionSpec()] * len(arguments)),
    out_specs=PartitionSpec(),
    check_vma=False,
  )
  return travelling(jax.make_jaxpr(cut)(params, *arguments).jaxpr)


@pytest.mark.parametrize("here", [64, 512], ids=["tokens travel", "experts are gathered"])
def test_what_travels_in_a_prefill_is_what_was_counted(here):
  ring = 4
  attention = partial(ring_attention, axis="ring", block=8, implementation="ring")
  tokens = jax.ShapeDtypeStruct((1, here), jnp.int32)

  def program(model, tokens):
    return model.prefill(tokens, tokens, tokens, attention=attention, axis="ring")[0]

  found = inside_a_ring(program, ring, tokens)
  load = Load(prompts=1, prompt=here * ring, response=1, group=1, slots=0, lanes=1)
  assert roofline.prefill(SMALL, load, 1, ring).links == found["passed"] + found["gathered"] / 2


def test_what_travels_in_a_step_of_decoding_is_what_was_counted():
  """Sums travel twice, and use both directions of the ring."""
  ring, lanes, group, layers = 4, 3, 2, SMALL.num_hidden_layers
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16)  # noqa: E731
  prefix, suffix = shape(layers, lanes, 2, 8, 16), shape(layers, lanes, group, 2, 4, 16)
  tokens = jax.ShapeDtypeStruct((lanes, group), jnp.int32)

  def program(model, tokens, prefix, suffix):
    length = tokens[:, 0]
    hidden, *_ = model.decode(tokens, tokens, (prefix,) * 2, length, (suffix,) * 2, tokens, axis="ring")
    return model.logits(hidden, "ring")

  found = inside_a_ring(program, ring, tokens, prefix, suffix)
  load = Load(prompts=lanes, prompt=32, response=1, group=group, slots=0, lanes=lanes)
  phase = roofline.decode(SMALL, load, 1, ring)
  assert phase.links == found["summed"] + found["gathered"] / 2
  assert phase.hops == (3 * layers + 1) * ring  # the largest score, the sum, the experts' sum; then the logits


def test_weights_to_decode_with_are_those_of_the_rules():
  mesh = make_mesh(2, 4)
  params = nnx.split(nnx.eval_shape(lambda: Qwen3(SMALL, rngs=nnx.Rngs(0))))[1]
  size = lambda x, spec: math.prod(NamedSharding(mesh, spec).shard_shape(x.shape))  # noqa: E731
  shards = jax.tree.map(size, params, rules.decoding(params, mesh))
  assert roofline.decode_weights(SMALL, 4) == 2 * sum(jax.tree.leaves(shards))


def test_a_step_of_decoding_by_hand():
  """30B-A3B: one group of 8 over 120K reads 11.8 GB of caches a step (98,304 bytes a token), on one device."""
  config = PRESETS["qwen3-30b-a3b-thinking-2507"]
  load = Load(prompts=1, prompt=120_000, response=2, group=8, slots=0, lanes=1)
  phase = roofline.decode(config, load, data=1, ring=1)
  weights = 2 * (costs.parameters(config).total - costs.parameters(config).embedding)
  idle = 2 * costs.parameters(config).experts * (1 - 8 / 128) ** 8
  assert phase.memory / 2 == pytest.approx(98_304 * (120_000 + 8) + weights - idle)
  assert (phase.links, phase.hops) == (0, 0)


def test_responses_that_find_no_lane_wait():
  config = PRESETS["qwen3-30b-a3b-thinking-2507"]
  load = Load(prompts=8, prompt=1000, response=100, group=8, slots=0, lanes=2)
  each = roofline.decode(config, Load(**vars(load) | {"prompts": 4}), data=2, ring=16)
  assert roofline.decode(config, load, data=2, ring=16).memory == 2 * each.memory


def test_the_longest_resource_bounds_a_phase_and_hops_come_on_top():
  chip, use = Chip(flops=100, memory=1, bandwidth=10, link=5), Use(0.5, 1.0, 1.0)
  phase = Phase("any", arithmetic=100, memory=30, links=5, hops=1e6)
  assert phase.seconds(chip, use) == {"arithmetic": 2, "memory": 3, "links": 1, "hops": 1}
  assert phase.total(chip, use) == 4 and phase.bound(chip, use) == "memory"


def test_uses_that_are_no_fractions_are_refused():
  for use in (0, 1.5, -1):
    with pytest.raises(ValueError, match=r"must be fractions above 0 and up to 1 of the peaks"):
      Use(memory=use)


def test_unknown_topologies_are_refused():
  assert chip_of("v6e:16x16") is CHIPS["v6e"]
  for topology in ("v9:2x2", "v5p", "v5p:2x", "v5p:2x2x2x2"):
    with pytest.raises(ValueError, match=rf"topology='{topology}' is not a chip of v5e, v5p, v6e and a grid"):
      chip_of(topology)

"""A stage's memory on each device, settled before its first step: how many groups are sampled at once, and if it fits.

What a program takes is what the compiler says it takes. Where a device doesn't say what it has (a CPU) and no limit is
set, nothing is compiled ahead and nothing is bounded.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import PyTree

from qwenlong_jax.parallelism import hosts
from qwenlong_jax.rl.learner import HOST, Learner
from qwenlong_jax.rollout.engine import Engine, dealt_block
from qwenlong_jax.rollout.lanes import lane_bytes
from qwenlong_jax.rollout.sampling import Sampling
from qwenlong_jax.stages.setup import Design

GIB = 2**30
USED = 0.9  # of a device's memory: the rest is for what the runtime keeps and for fragments


@dataclass(frozen=True)
class Memory:
  """Bytes of a device that a compiled program takes."""

  arguments: int
  results: int  # beyond the donated arguments that they take the place of
  temporary: int

  @property
  def total(self) -> int:
    return self.arguments + self.results + self.temporary


def sampler(
  shop: Design,
  learner: Learner,
  prompts: int,
  prompt_slots: int,
  *,
  group: int,
  sampling: Sampling,
  record: bool = False,
) -> Engine:
  """An engine for so many prompts, of as many groups at once as fit beside the learner's state, up to `sampling.lanes`.

  Raises:
    ValueError: not one fits.
  """
  mesh, limit = shop.mesh, device_memory(shop)
  each = prompts // mesh.shape["data"]
  wanted = lanes = min(shop.config.sampling.lanes or each, each)
  if limit is None:
    return Engine(learner.graph, mesh, lanes=lanes, record=record)
  params, state = learner.abstract_state().params, device_bytes(learner.abstract_state())
  block = dealt_block(prompt_slots, mesh.shape["ring"], learner.ring_block)
  slots = prompt_slots, sampling.max_tokens, group, mesh.shape["ring"], block
  one = lane_bytes(shop.model, *slots, itemsize=shop.dtype.itemsize)
  lanes = min(lanes, (limit - state) // one)
  while lanes > 0:
    engine = Engine(learner.graph, mesh, lanes=lanes, record=record)
    need = memory_of(engine.lower(params, (prompts, prompt_slots), group=group, sampling=sampling))
    if need is not None and state + need.total <= limit:
      fewer = f" (of {wanted} that were wanted)" if lanes < wanted else ""
      hosts.say(f"sampling takes {(state + need.total) / GIB:.2f} GiB of a device, with {lanes} groups at once{fewer}")
      return engine
    lanes -= 1 if need is None else max(1, (state + need.total - limit) // max(one, need.temporary // lanes))
  raise ValueError(
    f"not one group of {prompt_slots} prompt and {group} x {sampling.max_tokens} response slots fits into "
    f"{limit / GIB:.2f} GiB of a device beside {state / GIB:.2f} GiB of parameters and optimizer, its caches being "
    f"{one / GIB:.2f} GiB; raise mesh.ring={mesh.shape['ring']} or take more devices"
  )


def check_update(shop: Design, learner: Learner, rows: int, slots: int) -> None:
  """Raises ValueError if a step with the longest rows doesn't fit; else says what it takes."""
  limit = device_memory(shop)
  if limit is None:
    return
  need = memory_of(learner.traced(rows, slots).lower())
  if need is None or need.total > limit:
    takes = "more than the compiler grants" if need is None else f"{need.total / GIB:.1f} GiB"
    raise ValueError(
      f"a step with rows of {slots} slots takes {takes}, of {limit / GIB:.1f} GiB of a device; raise mesh.ring="
      f"{shop.mesh.shape['ring']}, set batch.micro_rows=1 and model.remat=True, or take more devices"
    )
  hosts.say(f"learning takes {need.total / GIB:.2f} GiB of a device, with rows of {slots} slots")


def device_memory(shop: Design) -> int | None:
  """Bytes of a device that the run may take, the same on all processes; None where nobody says."""
  if shop.config.mesh.memory:
    return int(shop.config.mesh.memory * GIB)
  stats = [device.memory_stats() or {} for device in shop.mesh.local_devices]
  least = min(hosts.exchange(min(known.get("bytes_limit", 0) for known in stats)))
  return int(USED * least) if least else None


def memory_of(program: jax.stages.Lowered, options: dict[str, Any] | None = None) -> Memory | None:
  """What the compiled program takes; None: the compiler, which is given `options`, refuses it for its memory."""
  try:
    analysis = program.compile(options).memory_analysis()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return None
  assert analysis is not None  # all of our backends know
  kept = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
  return Memory(analysis.argument_size_in_bytes, kept, analysis.temp_size_in_bytes)


def device_bytes(tree: PyTree) -> int:
  """Bytes of each device that hold its parts of the arrays; what lies on the hosts takes none."""
  here = (x for x in jax.tree.leaves(tree) if x.sharding.memory_kind != HOST)
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in here)

"""The plan of a stage on a slice of TPUs: its programs compiled, their memory, transfers and bounds in time."""

import math
import multiprocessing
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from qwenlong_jax.kernels import schedule
from qwenlong_jax.kernels.ring_attention import BLOCK
from qwenlong_jax.models import costs
from qwenlong_jax.parallelism.chips import Chip, chip_of
from qwenlong_jax.parallelism.mesh import make_mesh
from qwenlong_jax.rl import packing
from qwenlong_jax.rollout import weights
from qwenlong_jax.rollout.engine import Engine, dealt_block
from qwenlong_jax.rollout.lanes import lane_bytes
from qwenlong_jax.rollout.sampling import Sampling
from qwenlong_jax.stages import reinforce, roofline
from qwenlong_jax.stages.budget import GIB, USED, device_bytes, memory_of
from qwenlong_jax.stages.roofline import Load, Use
from qwenlong_jax.stages.setup import Design, model_of
from qwenlong_jax.types import TASKS

PROGRAMS = "learn", "sample", "relayout"
TEMPLATE = 24  # tokens of a chat template, about


@dataclass(frozen=True)
class Program:
  """A compiled program: GiB of a device by kind, how many transfers are hidden, seconds to compile it.

  `refused`: the compiler grants less than it takes; nothing else is known of it then.
  """

  name: str
  refused: bool
  kinds: dict[str, float]
  hidden: int  # transfers of the ring that start before a kernel and end after it
  transfers: int
  gathers: int  # of parameters and keys,
  asynchronous: int  # of which so many are
  compiled_in: float

  @property
  def total(self) -> float:
    return math.inf if self.refused else sum(self.kinds.values())


@dataclass(frozen=True)
class PhaseTime:
  """Of one step; `by`: seconds that each resource would take."""

  name: str
  flops: float  # of all chips
  seconds: float
  bound: str
  by: dict[str, float]


@dataclass(frozen=True)
class Plan:
  """What is printed, drawn and saved."""

  topology: str
  chips: int
  stage: str
  steps: int
  data: int
  ring: int
  load: Load
  use: Use
  hbm: float  # GiB that the compiler grants
  programs: list[Program]
  times: list[PhaseTime]
  repeated_flops: float  # of learning, if every response came with its prompt
  repeated_bytes: float  # of caches read by a decode step, likewise, over what is read
  examples: int  # answered before the stage, at most, to choose among them
  advice: list[str]

  @property
  def fits(self) -> bool:
    return all(program.total <= USED * self.hbm for program in self.programs)

  @property
  def step_seconds(self) -> float:
    return sum(phase.seconds for phase in self.times)

  @property
  def choosing_seconds(self) -> float:
    sampling = sum(phase.seconds for phase in self.times if phase.name in ("prefill", "decode"))
    return -(-self.examples // self.load.prompts) * sampling


def plan(config: ConfigDict, topology: str, stage: str, use: Use, *, sweep: bool = False) -> Plan:
  """Compiles the stage's programs for the topology.

  With `sweep` over all rings: the first of them, in the order of the times, that fits, or the one that lacks least.

  Raises:
    ValueError: an unknown topology or stage, a mesh that the slice or the model doesn't bear.
  """
  chip, devices = chip_of(topology), slice_of(topology)
  stage = stage or longest(config)
  if stage not in config.stages:
    raise ValueError(f"{stage=} is not one of the config's: {', '.join(config.stages) or 'it has none'}")
  rings = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0] if sweep else [config.mesh.ring]
  designs = []
  for ring in rings:
    try:
      mesh = make_mesh(-1 if sweep else config.mesh.data, ring, devices)
      design = Design(config=config, model=model_of(config), mesh=mesh)
      designs.append((step_seconds(design, stage, chip, use), ring, design))
    except ValueError as error:
      if not sweep:
        raise
      print(f"ring {ring}: {error}", flush=True)
  best = None
  for seconds, ring, design in sorted(designs, key=lambda one: one[:2]):
    print(f"ring {ring}: {seconds:.0f} s a step, if it fits; compiling", flush=True)
    found = compiled(design, topology, stage, chip, use)
    if best is None or excess(found) < excess(best):
      best = found
    if best.fits:
      break
  if best is None:
    raise ValueError(f"no ring of the {len(devices)} devices of {topology} can be planned, see above")
  return best


def compiled(design: Design, topology: str, stage: str, chip: Chip, use: Use) -> Plan:
  """Of one mesh."""
  config, mesh, model = design.config, design.mesh, design.model
  load, settings = load_of(design, stage, chip), config.stages[stage]
  data, ring = mesh.shape["data"], mesh.shape["ring"]
  # In processes of their own: the compiler takes one core.
  with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
    programs = list(pool.map(partial(compiled_apart, config, topology, data, ring, load), PROGRAMS))
  times = []
  for phase in roofline.phases(model, load, data, ring, recomputed(config)):
    by = phase.seconds(chip, use)
    flops = phase.arithmetic * mesh.size
    times.append(PhaseTime(phase.name, flops, phase.total(chip, use), phase.bound(chip, use), by))
  tokens, pairs = costs.repeated_rows(load.prompt, load.response, load.group)
  own = load.response / 2
  found = Plan(
    topology=topology,
    chips=mesh.size,
    stage=stage,
    steps=settings.steps,
    data=data,
    ring=ring,
    load=load,
    use=use,
    hbm=chip.memory,
    programs=programs,
    times=times,
    repeated_flops=load.prompts * costs.gradient(model, tokens, pairs, tokens, recomputed(config)),
    repeated_bytes=load.group * (load.prompt + own) / (load.prompt + load.group * own),
    examples=len(TASKS) * config.data.examples if settings.below or settings.bins else 0,
    advice=[],
  )
  return replace(found, advice=advice(found))


def compiled_apart(config: ConfigDict, topology: str, data: int, ring: int, load: Load, name: str) -> Program:
  """One of PROGRAMS, of the stage whose longest batch is `load`."""
  mesh = make_mesh(data, ring, slice_of(topology))
  design = Design(config=config, model=model_of(config), mesh=mesh)
  learner = reinforce.make_learner(design)
  state = learner.abstract_state()
  parameters, resident = device_bytes(state.params), device_bytes(state)
  kinds = {"parameters": parameters, "optimizer": resident - parameters}
  begun = time.time()
  if name == "learn":
    lowered = learner.traced(load.prompts, load.slots).lower()
  elif name == "relayout":
    lowered = weights.lower(state.params, mesh, design.dtype)
  else:
    kinds |= {
      "weights to decode": roofline.decode_weights(design.model, ring) * design.dtype.itemsize // roofline.HALF,
      "caches": load.lanes * lane_of(design, load),
    }
    sampling = Sampling(config.sampling.temperature, config.sampling.top_p, load.response, (0,), 0)
    engine = Engine(learner.graph, mesh, lanes=load.lanes)
    lowered = engine.lower(state.params, (load.prompts, load.prompt), group=load.group, sampling=sampling)
  with tempfile.TemporaryDirectory() as folder:
    need = memory_of(lowered, {"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
    if need is None:
      return Program(name, True, {}, 0, 0, 0, 0, time.time() - begun)
    (path,) = Path(folder).glob("*.after_optimizations.txt")
    text = path.read_text(encoding="utf-8")
  # While it samples or moves weights, the learner's state stays where it is.
  held = 0 if name == "learn" else resident - (parameters if name == "relayout" else 0)
  kinds["temporary and batch"] = need.total + held - sum(kinds.values())
  passed = schedule.transfers(text)
  return Program(
    name,
    False,
    {kind: size / GIB for kind, size in kinds.items()},
    sum(bool(transfer.beside) for transfer in passed),
    len(passed),
    *gathers(text),
    time.time() - begun,
  )


def load_of(design: Design, stage: str, chip: Chip) -> Load:
  """The stage's longest batch, and as many groups at once as the formulas let beside the state."""
  config, mesh = design.config, design.mesh
  settings = config.stages[stage]
  prompt = -(-(settings.prompt_tokens + TEMPLATE) // 8) * 8
  group = config.batch.group
  each = config.batch.prompts // mesh.shape["data"]
  if config.batch.prompts % mesh.shape["data"]:
    raise ValueError(f"batch.prompts={config.batch.prompts} do not divide over {mesh.shape['data']} rings")
  slots = packing.most_slots(prompt, settings.response_tokens, group)
  load = Load(config.batch.prompts, prompt, settings.response_tokens, group, slots, config.sampling.lanes or each)
  state = 3 * roofline.FLOAT * costs.parameters(design.model).total / mesh.size
  # A fifth of what is left is for prefilling a prompt, logits, and the slack of the formula.
  room = USED * chip.memory * GIB - state - roofline.decode_weights(design.model, mesh.shape["ring"])
  return replace(load, lanes=max(1, min(load.lanes, each, int(0.8 * room // lane_of(design, load)))))


def lane_of(design: Design, load: Load) -> int:
  """Bytes of a device that the caches of a group take."""
  ring = design.mesh.shape["ring"]
  block = dealt_block(load.prompt, ring, BLOCK)
  return lane_bytes(design.model, load.prompt, load.response, load.group, ring, block, design.dtype.itemsize)


def step_seconds(design: Design, stage: str, chip: Chip, use: Use) -> float:
  data, ring = design.mesh.shape["data"], design.mesh.shape["ring"]
  experts = design.model.num_experts
  if experts and experts % ring:
    raise ValueError(f"{experts} experts do not divide over a ring of {ring}")
  load = load_of(design, stage, chip)
  return sum(
    phase.total(chip, use) for phase in roofline.phases(design.model, load, data, ring, recomputed(design.config))
  )


def recomputed(config: ConfigDict) -> int:
  """How often a layer's feed-forward is computed again for a gradient."""
  return config.model.remat * (2 if config.model.together > 1 else 1)


def slice_of(topology: str) -> list[jax.Device]:
  """Devices to compile for.

  Raises:
    ValueError: libtpu doesn't know the topology, or is not installed.
  """
  try:
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
  except Exception as error:  # of several kinds, by jax's and libtpu's versions
    raise ValueError(f"{topology=} cannot be compiled for: {error}; is libtpu missing? pip install libtpu") from error


def longest(config: ConfigDict) -> str:
  """The stage with the longest rows."""
  size = lambda stage: stage.prompt_tokens + config.batch.group * stage.response_tokens  # noqa: E731
  return max(config.stages, key=lambda name: size(config.stages[name]), default="")


def gathers(text: str) -> tuple[int, int]:
  """(all-gathers, those that are asynchronous) of a scheduled program."""
  bodies = re.findall(r"^%?(\S+) [^\n]*\{\n(.*?)^\}", text, re.M | re.S)
  counts = [(name, len(re.findall(r" all-gather(?:-start)?\(", body))) for name, body in bodies]
  behind = sum(count for name, count in counts if name.startswith("called_computation"))
  started = sum(len(re.findall(r" all-gather-start\(", body)) for _, body in bodies)
  return sum(count for _, count in counts), behind + started


def excess(found: Plan) -> float:
  return max(program.total for program in found.programs) - USED * found.hbm


def advice(found: Plan) -> list[str]:
  """What to change, where it doesn't fit or something is not hidden."""
  said = []
  for program in found.programs:
    over = program.total - USED * found.hbm
    if over > 0:
      remedy = {
        "learn": f"a ring longer than {found.ring} has fewer slots on a device; model.remat=True keeps less, "
        "model.together=2 less still; "
        "batch.micro_rows=1 takes one row at a time; shorter prompts or responses",
        "sample": f"fewer groups at once (sampling.lanes={max(1, found.load.lanes * 3 // 4)}), or a longer ring",
        "relayout": "a longer ring, over which experts are cut",
      }[program.name]
      much = "more than the compiler grants" if program.refused else f"{over:.1f} GiB too much"
      said.append(f"{program.name} takes {much}: {remedy}; or more chips")
    if program.hidden < program.transfers:
      said.append(f"{program.transfers - program.hidden} transfers of the ring in {program.name} are not hidden")
  worst = max(found.times, key=lambda phase: phase.seconds)
  if worst.name == "decode" and worst.bound == "hops":
    said.append("decoding mostly waits for neighbours: a shorter ring, or more groups at once")
  return said

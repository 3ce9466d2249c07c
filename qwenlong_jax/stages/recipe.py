"""The whole recipe in order: warm start, stages of reinforcement learning, an evaluation after each, the report.

The same call again goes on from the last checkpoint; what is on disk is not done twice.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import get_args

from ml_collections import ConfigDict

from qwenlong_jax.checkpoints import Checkpoints
from qwenlong_jax.parallelism import hosts
from qwenlong_jax.reporting import Reporter, report
from qwenlong_jax.rl import advantages, aepo, clipping, loss
from qwenlong_jax.rl.learner import Learner, TrainState
from qwenlong_jax.stages import evaluate, reinforce, warmstart
from qwenlong_jax.stages.session import Carry, Session
from qwenlong_jax.stages.setup import Workshop, initial_parameters, workshop

WARMSTART = "warmstart"


def run(config: ConfigDict, workdir: Path, until: str = "") -> None:
  """Runs or resumes the experiment `config` in `workdir`, up to the end of the stage `until` ("": of the last).

  Raises:
    ValueError: a setting that cannot be used, or a damaged or foreign checkpoint.
    FloatingPointError: `optimizer.nonfinite_limit` steps in a row had no finite gradient.
  """
  check(config)
  shop = workshop(config, workdir)
  check_rows(config, shop.mesh.shape["data"])
  plan = plan_of(config)
  settings = config.checkpoint
  with Checkpoints(workdir / "checkpoints", keep=settings.keep, allow_previous=settings.allow_previous) as checkpoints:
    learners = dict.fromkeys(config.stages, reinforce.make_learner(shop))
    if config.warmstart.steps:
      learners[WARMSTART] = warmstart.make_learner(shop)
    done, state, carry, rows = restore(shop, plan, learners, checkpoints)
    with Reporter(workdir, resume_at=rows) if hosts.is_first() else nullcontext() as reporter:
      session = Session(checkpoints, reporter, every=settings.every, total=plan[-1][2], carry=carry)
      for number, (name, first, end) in enumerate(plan):
        if end <= done and name != until:
          continue
        learner = learners[name]
        if end <= done:
          evaluate.run(shop, learner, state.params, name=name, step=end, number=number + 1)
          return
        if state.step == 0:
          before = plan[number - 1][0] if number else "base"
          if number or not config.warmstart.steps:
            evaluate.run(shop, learner, state.params, name=before, step=first, number=number)
        if name == WARMSTART:
          state = warmstart.train(shop, session, learner, state)
        else:
          state = reinforce.train(shop, session, learner, state, name=name, number=number, first=first)
        # After the last stage too: a run can be given another one.
        following = learners[plan[number + 1][0]] if number + 1 < len(plan) else learner
        state = enter(learner, following, state)
        session.finish_stage(end, state)
        if name == until:
          evaluate.run(shop, learner, state.params, name=name, step=end, number=number + 1)
          return
      evaluate.run(shop, learners[plan[-1][0]], state.params, name=plan[-1][0], step=plan[-1][2], number=len(plan))
  hosts.first(lambda: print(f"report: {report(workdir)}", flush=True))


def check_rows(config: ConfigDict, devices: int) -> None:
  """Raises ValueError if a batch does not divide over the devices; found here, not after the warm start."""
  micro = config.batch.micro_rows
  for key, rows, share in (
    ("warmstart.rows", config.warmstart.rows if config.warmstart.steps else 0, 1),
    ("batch.prompts", config.batch.prompts if any(config.stages[name].steps for name in config.stages) else 0, micro),
  ):
    unit = devices * max(share, 1)
    if rows % unit:
      pieces = f"mesh.data={devices}" + (f" times batch.micro_rows={share}" if share > 1 else "")
      raise ValueError(f"{key}={rows} does not divide by {pieces}; take {rows // unit * unit or unit} or fewer devices")


def plan_of(config: ConfigDict) -> list[tuple[str, int, int]]:
  """(stage, its first step, the step after its last) in the run's count."""
  plan, first = [], 0
  steps = {WARMSTART: config.warmstart.steps, **{name: config.stages[name].steps for name in sorted(config.stages)}}
  for name, count in steps.items():
    if count:
      plan.append((name, first, first + count))
      first += count
  return plan


def restore(
  shop: Workshop, plan: list[tuple[str, int, int]], learners: dict[str, Learner], checkpoints: Checkpoints
) -> tuple[int, TrainState, Carry, int]:
  """(steps done, state, carry, rows recorded) of the newest checkpoint, or of the start."""
  done = checkpoints.latest()
  if done is None:
    learner = learners[plan[0][0]]
    return 0, learner.state_of(initial_parameters(shop, learner)), Carry(), 0
  # A checkpoint between two stages already has the optimizer of the later one.
  name = next((name for name, _, end in plan if done < end), plan[-1][0])
  done, state, host = checkpoints.restore(learners[name].abstract_state())
  rows = host.pop("rows")
  hosts.say(f"restored step {done} from {checkpoints.folder}")
  return done, state, Carry(**host), rows


def enter(old: Learner, new: Learner, state: TrainState) -> TrainState:
  """The state at the start of the next stage: the same optimizer if the learner stays, a fresh one otherwise."""
  fresh = new.state_of(state.params)
  return TrainState(step=fresh.step, params=fresh.params, optimizer=state.optimizer if old is new else fresh.optimizer)


def check(config: ConfigDict) -> None:
  """Raises ValueError for a setting that would fail only later, naming it and what it could be."""
  aepo.Band(config.aepo.low, config.aepo.high)
  for key, value, allowed in (
    ("advantage.scope", config.advantage.scope, get_args(advantages.Scope)),
    ("aepo.mode", config.aepo.mode, ("off", *get_args(aepo.Mode))),
    ("clipping.mode", config.clipping.mode, clipping.MODES),
    ("loss.normalizer", config.loss.normalizer, get_args(loss.Normalizer)),
  ):
    if value not in allowed:
      raise ValueError(f"{key}={value!r} is not one of {', '.join(allowed)}")
  for key, value in (
    ("optimizer.learning_rate", config.optimizer.learning_rate),
    ("warmstart.learning_rate", config.warmstart.learning_rate),
  ):
    if not 0 <= value < float("inf"):
      raise ValueError(f"{key}={value} must be a finite number of at least 0")
  if config.data.worlds < 1:
    raise ValueError(f"data.worlds={config.data.worlds} must be at least 1, the real one")
  for name, stage in config.stages.items():
    if not 0 <= stage.below <= 1:
      raise ValueError(f"stages.{name}.below={stage.below} must be of 0 to 1")
    if min(stage.bins, stage.per_bin) < 0 or (stage.bins > 0) != (stage.per_bin > 0):
      raise ValueError(f"stages.{name}.bins={stage.bins} and per_bin={stage.per_bin}: give both, or 0 for neither")
  if not plan_of(config):
    raise ValueError("nothing to do: warmstart.steps is 0 and no stage has steps; set one of them")
  steps, warmup = config.warmstart.steps, config.warmstart.warmup_steps
  if steps and warmup >= steps:
    raise ValueError(f"warmstart.warmup_steps={warmup} must be fewer than warmstart.steps={steps}")
  if config.evaluation.prompts % len(config.evaluation.prompt_tokens):
    raise ValueError(
      f"evaluation.prompts={config.evaluation.prompts} do not divide over the "
      f"{len(config.evaluation.prompt_tokens)} lengths of evaluation.prompt_tokens"
    )

"""A run's place in its recipe: which step is next, its checkpoints, its record, and how it stops.

Steps count over all stages of a run. A checkpoint is of the moment *before* its step; its host values hold what the
loop carries beside the arrays, so that a run that was killed anywhere goes on as if it had not been.
"""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import jax

from qwenlong_jax.checkpoints import Checkpoints
from qwenlong_jax.parallelism import hosts
from qwenlong_jax.reporting import Reporter, StepMetrics
from qwenlong_jax.rl.learner import TrainState

STOPPED = 143  # the exit status of a process that SIGTERM ended


@dataclass
class Carry:
  """What a loop carries from step to step beside arrays, as plain JSON.

  `iterator` belongs to the stage that is under way (None: at its start); `nonfinite` counts steps skipped in a row.
  """

  latch: int = 0
  nonfinite: int = 0
  iterator: Any = None


@dataclass
class Session:
  """The open run. One process has a reporter, the others None; all that it carries is the same on all of them."""

  checkpoints: Checkpoints
  reporter: Reporter | None
  every: int
  total: int
  carry: Carry = field(default_factory=Carry)
  terminated: bool = False
  _clock: float = field(default_factory=time.perf_counter)
  _compilations: int = 0

  def __post_init__(self) -> None:
    self._compiled = count_compilations()
    signal.signal(signal.SIGTERM, self._terminate)

  def _terminate(self, number: int, frame: FrameType | None) -> None:
    self.terminated = True

  def finish_step(self, step: int, state: TrainState, metrics: dict[str, Any], tokens: int, last: bool) -> None:
    """Records step `step` (the run's), saves on its period, and ends the process if it was told to stop.

    The `last` step of a stage is saved by `finish_stage`.
    """
    now, compiled = time.perf_counter(), self._compiled()
    row = StepMetrics(step=step, compilations=compiled - self._compilations, **metrics)
    if self.reporter is not None:
      self.reporter.write(row, seconds=now - self._clock, tokens=tokens, total_steps=self.total)
    self._clock, self._compilations = now, compiled
    if not last:
      stops = hosts.anywhere(self.terminated)
      if stops or (step + 1) % self.every == 0:
        self._save(step + 1, state, stops)

  def finish_stage(self, step: int, state: TrainState) -> None:
    """Saves the moment before `step`, the first of the next stage, whose state is `state`."""
    self.carry.iterator = None
    self._save(step, state, hosts.anywhere(self.terminated))

  def _save(self, step: int, state: TrainState, stops: bool) -> None:
    # Every step has left one row.
    self.checkpoints.save(step, state, {"rows": step, **vars(self.carry)})
    if stops:
      self.checkpoints.wait()
      hosts.say(f"stopped by SIGTERM after {step} steps, which are saved; the same command goes on from there")
      raise SystemExit(STOPPED)

  def stop_if_told(self, done: str) -> None:
    """Ends the process between two steps if it was told to; `done` says what is kept beside the last checkpoint."""
    if hosts.anywhere(self.terminated):
      hosts.say(f"stopped by SIGTERM; {done}; the same command goes on from there")
      raise SystemExit(STOPPED)

  def check_finite(self, finite: bool, limit: int) -> None:
    """Counts steps whose gradient was not finite; such a step has changed nothing.

    Raises:
      FloatingPointError: `limit` of them in a row.
    """
    self.carry.nonfinite = 0 if finite else self.carry.nonfinite + 1
    if self.carry.nonfinite >= limit:
      latest = self.checkpoints.latest()
      good = (
        f"the last good checkpoint is step {latest} in {self.checkpoints.folder}"
        if latest is not None
        else "no checkpoint yet"
      )
      raise FloatingPointError(
        f"the gradient was NaN or infinite in {self.carry.nonfinite} steps in a row; {good}. "
        "Raise optimizer.nonfinite_limit to go on past it, or start in another workdir with a lower learning rate"
      )


def count_compilations() -> Callable[[], int]:
  """A function that says how many programs XLA has compiled since this call."""
  seen = [0]

  def listen(event: str, duration_secs: float, **_: Any) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
      seen[0] += 1

  jax.monitoring.register_event_duration_secs_listener(listen)
  return lambda: seen[0]

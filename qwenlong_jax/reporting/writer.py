"""One row of numbers per step: metrics.jsonl, timing.jsonl, TensorBoard and a line on the console.

metrics.jsonl holds what the seed determines, so that a resumed run leaves the bytes of an uninterrupted one;
what depends on the clock or on how often the process was started (seconds, compilations) goes to timing.jsonl.
"""

import json
import math
import os
import time
from collections import deque
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any

from qwenlong_jax.files import publish

# Steps whose median seconds the console takes for the time left: the first of a stage compiles and is an outlier.
WINDOW = 20


@dataclass(frozen=True)
class StepMetrics:
  """The numbers of one step; None where a stage does not have one (`nll` and `accuracy` are the warm start's).

  Entropy, gaps and nll in nats; lengths and counts in tokens or samples; fractions in [0, 1]. `gap_*` is
  |log-probability under the sampler - under the trainer|, of groups that something is learned from. `skipped` is "",
  "nothing_to_learn" or "nonfinite".
  `compilations` counts those since the previous row; it is written to timing.jsonl, because a restart adds some.
  Scalars of numpy or JAX are accepted everywhere.
  """

  stage: str
  step: int
  reward: float | None = None
  reward_by_task: dict[str, float] = field(default_factory=dict)
  entropy: float | None = None
  band_low: float | None = None
  band_high: float | None = None
  latch: int | None = None
  masked_samples: int | None = None
  response_length: float | None = None
  stopped_fraction: float | None = None
  zero_variance_groups: int | None = None
  gap_mean: float | None = None
  gap_max: float | None = None
  loss: float | None = None
  gradient_norm: float | None = None
  learned_tokens: int | None = None
  skipped: str = ""
  prefill_tokens: int | None = None
  compilations: int | None = None
  failures: dict[str, int] = field(default_factory=dict)
  nll: float | None = None
  accuracy: float | None = None

  def row(self) -> dict[str, Any]:
    """The row of metrics.jsonl: plain JSON values; NaN and infinities become null and are named in nonfinite_fields."""
    nonfinite: list[str] = []
    values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "compilations"}
    return {name: _plain(value, name, nonfinite) for name, value in values.items()} | {"nonfinite_fields": nonfinite}


def _plain(value: Any, name: str, nonfinite: list[str]) -> Any:
  """A JSON value; appends the name of every number that JSON cannot hold to `nonfinite`."""
  if isinstance(value, dict):
    return {key: _plain(value[key], f"{name}.{key}", nonfinite) for key in sorted(value)}
  if hasattr(value, "item"):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    nonfinite.append(name)
    return None
  return value


def _line(row: dict[str, Any]) -> bytes:
  return (json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _complete_lines(path: Path) -> list[bytes]:
  """The file's lines up to the first that is no whole JSON object, such as a kill in mid-write leaves."""
  lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
  for index, line in enumerate(lines):
    try:
      whole = line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
      whole = False
    if not whole:
      return lines[:index]
  return lines


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The rows of a .jsonl file of this package, without a half-written last one; [] where there is no file."""
  return [json.loads(line) for line in _complete_lines(Path(path))]


def _replace(path: Path, lines: list[bytes]) -> None:
  """Writes the lines so that a kill at any moment leaves either the old file or the new one."""
  with publish(path) as partial, partial.open("wb") as file:
    file.writelines(lines)
    file.flush()
    os.fsync(file.fileno())


class Reporter:
  """Appends to the record of a run in `workdir`, and carries on an interrupted one.

  Args:
    workdir: the run's folder; created where it is missing.
    resume_at: None for a new run (an error if the folder already holds one). On resume, the `rows` that were saved in
      the checkpoint that was restored: later rows are dropped from every file, and steps go on from there.
  """

  def __init__(self, workdir: str | os.PathLike[str], resume_at: int | None = None):
    from tensorboardX import SummaryWriter  # Slow to import (protobuf), and readers of a run do not need it.

    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    self._metrics_path, self._timing_path = folder / "metrics.jsonl", folder / "timing.jsonl"
    self._last_step = self._keep(resume_at)
    self._rows = resume_at or 0
    self._recent: deque[float] = deque(maxlen=WINDOW)
    self._metrics = open(self._metrics_path, "ab")  # noqa: SIM115 (open for the life of the run)
    self._timing = open(self._timing_path, "ab")  # noqa: SIM115
    purge = None if resume_at is None else self._last_step + 1
    # Without a suffix, a restart within the same second would open, and empty, the event file of the run it carries on.
    suffix = f".{time.time_ns()}"
    self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=purge, filename_suffix=suffix)

  def _keep(self, resume_at: int | None) -> int:
    """Drops what came after the checkpoint; returns the last step that is kept, -1 if there is none."""
    lines = _complete_lines(self._metrics_path)
    if resume_at is None:
      if lines:
        raise ValueError(
          f"{self._metrics_path} already holds {len(lines)} rows of a run; resume from its checkpoint, "
          "pass resume_at=0 to start it over, or choose another workdir"
        )
      return -1
    if len(lines) < resume_at:
      raise ValueError(
        f"{self._metrics_path} holds {len(lines)} valid rows, but the checkpoint was saved after {resume_at}; "
        "restore the file that belongs to this checkpoint, or resume from an earlier checkpoint"
      )
    last = json.loads(lines[resume_at - 1])["step"] if resume_at else -1
    _replace(self._metrics_path, lines[:resume_at])
    timing = [line for line in _complete_lines(self._timing_path) if json.loads(line)["step"] <= last]
    _replace(self._timing_path, timing)
    return last

  @property
  def rows(self) -> int:
    """How many rows are written: the cursor that a checkpoint saves and `resume_at` takes."""
    return self._rows

  def write(
    self, metrics: StepMetrics, *, seconds: float, tokens: int | None = None, total_steps: int | None = None
  ) -> None:
    """Records a step which took `seconds` of wall clock over `tokens` tokens; `total_steps` counts the whole run's."""
    row = metrics.row()
    if row["step"] <= self._last_step:
      raise ValueError(f"step {row['step']} after step {self._last_step}: steps count up over all stages of a run")
    rate = tokens / seconds if tokens is not None and seconds > 0 else None
    timing = {"stage": row["stage"], "step": row["step"], "seconds": seconds, "tokens_per_second": rate}
    self._append(self._timing, timing | {"compilations": _plain(metrics.compilations, "compilations", [])})
    self._append(self._metrics, row)
    self._rows, self._last_step = self._rows + 1, row["step"]
    self._scalars(row, seconds, rate)
    self._recent.append(seconds)
    left = None if total_steps is None else (total_steps - 1 - row["step"]) * median(self._recent)
    print(progress_line(row, seconds=seconds, rate=rate, total_steps=total_steps, left=left), flush=True)

  def _append(self, file: Any, row: dict[str, Any]) -> None:
    file.write(_line(row))
    file.flush()
    os.fsync(file.fileno())

  def _scalars(self, row: dict[str, Any], seconds: float, rate: float | None) -> None:
    numbers: dict[str, float | None] = {
      f"{row['stage']}/{name}": value for name, value in row.items() if isinstance(value, int | float)
    }
    for group in ("reward_by_task", "failures"):
      numbers |= {f"{row['stage']}/{group}/{key}": value for key, value in row[group].items()}
    numbers |= {"time/seconds": seconds, "time/tokens_per_second": rate}
    for name, value in numbers.items():
      if value is not None and not name.endswith("/step"):
        self._tensorboard.add_scalar(name, value, row["step"])
    self._tensorboard.flush()

  def close(self) -> None:
    """Closes the files; a Reporter is also a context manager that does so."""
    self._metrics.close()
    self._timing.close()
    self._tensorboard.close()

  def __enter__(self) -> "Reporter":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def initials(task: str) -> str:
  """The console's short name of a task: `multi_hop` is mh."""
  return "".join(word[0] for word in task.split("_") if word)


def duration(seconds: float) -> str:
  """Two units at most: 45s, 12m 05s, 3h 20m, 2d 04h."""
  whole = max(round(seconds), 0)
  for unit, size, below, smaller in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
    if whole >= size:
      return f"{whole // size}{unit} {whole % size // smaller:02d}{below}"
  return f"{whole}s"


def progress_line(
  row: dict[str, Any], *, seconds: float, rate: float | None, total_steps: int | None, left: float | None
) -> str:
  """One aligned console line of a metrics row; numbers that the row lacks are shown as a dash."""

  def number(value: float | None, form: str, width: int) -> str:
    return ("-" if value is None else format(value, form)).rjust(width)

  step = f"{row['step']}/{total_steps}" if total_steps else str(row["step"])
  parts = [f"{row['stage']:<12} {step:>9}"]
  if row["nll"] is not None or row["accuracy"] is not None:
    parts.append(f"nll {number(row['nll'], '.3f', 6)}  accuracy {number(row['accuracy'], '.3f', 5)}")
  else:
    tasks = " ".join(f"{initials(task)} {number(mean, '.2f', 4)}" for task, mean in row["reward_by_task"].items())
    band = f" in [{row['band_low']:.3f} {row['band_high']:.3f}]" if row["band_high"] is not None else ""
    parts.append(f"reward {number(row['reward'], '.3f', 5)}" + (f" ({tasks})" if tasks else ""))
    parts.append(f"H {number(row['entropy'], '.3f', 5)}{band} latch {number(row['latch'], 'd', 1)}")
    parts.append(f"length {number(row['response_length'], '.0f', 5)}")
  parts.append(f"{number(rate, ',.0f', 7)} tok/s {seconds:6.1f}s")
  if left is not None:
    parts.append(f"left {duration(left)}")
  if row["skipped"]:
    parts.append(f"SKIPPED: {row['skipped']}")
  return "  ".join(parts + [f"{name} not finite" for name in row["nonfinite_fields"]])

"""report.html: one self-contained page about a run, from the files in its workdir.

The page loads nothing: figures are data URIs, the style is inline, there are no scripts, and a content security policy
says so to the browser. What documents and models wrote is escaped wherever it is shown.
"""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qwenlong_jax.files import write_text
from qwenlong_jax.reporting import plots
from qwenlong_jax.reporting.canvas import Picture, Rows, column, window
from qwenlong_jax.reporting.intervals import Interval, bootstrap, paired_difference, per_prompt
from qwenlong_jax.reporting.plots import HeldOut, task_title
from qwenlong_jax.reporting.writer import duration, read_rows

TRANSCRIPTS = 10
# Characters of a context that the page shows: its first and last halves of this budget.
CONTEXT_CHARACTERS = 60_000
# Leaf names of config.json which the page shows before the full config, where the run has them.
SUMMARY = (
  *("model", "preset", "machine", "device", "commit", "seed", "batch", "prompts", "group", "learning_rate"),
  *("temperature", "top_p", "advantage", "normalizer", "clipping", "mode", "band", "low", "high"),
  *("input_length", "output_length"),
)


@dataclass(frozen=True)
class Evaluation:
  """One evaluation/<NN>-<name>.json: intervals per task, and the rewards ([P] or [P G]) behind them if it has them."""

  file: str
  name: str
  stage: str
  step: int
  tasks: dict[str, Interval]
  overall: Interval | None
  rewards: dict[str, list[Any]]


@dataclass(frozen=True)
class Comparison:
  """One line of the before/after table; `difference` is None where the two did not see the same prompts."""

  name: str
  prompts: int | None
  before: Interval | None
  after: Interval | None
  difference: Interval | None


@dataclass(frozen=True)
class StageSummary:
  """What one stage cost; None where timing.jsonl does not say."""

  name: str
  steps: int
  wall: str | None
  seconds: float | None
  tokens_per_second: float | None
  prefill_tokens: int | None
  compilations: int | None
  skipped: int


def report(workdir: str | os.PathLike[str], before: str | None = None, after: str | None = None) -> Path:
  """Writes <workdir>/report.html from whatever the run has written so far; returns its path.

  Args:
    workdir: a run's folder.
    before: name of the evaluation to compare from; the first one by default.
    after: name of the evaluation to compare to; the last one by default.
  """
  folder = Path(workdir)
  if not folder.is_dir():
    raise FileNotFoundError(f"{folder} is no folder; give the workdir of a run")
  rows, timing = read_rows(folder / "metrics.jsonl"), read_rows(folder / "timing.jsonl")
  config = read_config(folder)
  evaluations = read_evaluations(folder)
  first, last = _chosen(evaluations, before, 0), _chosen(evaluations, after, -1)
  pair = compare(first, last) if first is not None and last is not None and first is not last else []
  page = render(
    "report.html.jinja",
    title=str(config.get("name") or folder.resolve().name),
    rows=rows,
    summary=summary(config),
    config=json.dumps(config, indent=2, ensure_ascii=False) if config else "",
    wall=duration(sum(row["seconds"] or 0 for row in timing)) if timing else None,
    stages=stage_summaries(rows, timing),
    before=first,
    after=last,
    overall=pair[0] if pair else None,
    comparisons=pair,
    comparison_picture=plots.comparison(first.tasks, last.tasks) if pair and first and last else None,
    evaluations=evaluations,
    tasks=_tasks(evaluations),
    task_pictures=_task_pictures(rows, evaluations),
    pictures=_pictures(rows, timing, evaluations),
    smoothing=window(sum(row.get("reward") is not None for row in rows)),
    transcripts=sample_transcripts(folder, last),
    task_title=task_title,
  )
  return write_text(folder / "report.html", page)


def render(template: str, **values: Any) -> str:
  """A page from one of this folder's templates; every value is escaped."""
  from jinja2 import Environment, PackageLoader, StrictUndefined

  environment = Environment(
    loader=PackageLoader("qwenlong_jax.reporting", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {"signed": lambda value: f"{value:+.3f}".replace("-", "−")}
  return environment.get_template(template).render(values)


def read_config(folder: Path) -> dict[str, Any]:
  """config.json of a run; {} where it is missing."""
  path = folder / "config.json"
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def read_evaluations(folder: Path) -> list[Evaluation]:
  """Every evaluation of a run in the order of its number <NN>."""
  files = [path for path in (folder / "evaluation").glob("*.json") if path.name.partition("-")[0].isdigit()]
  return [_evaluation(path) for path in sorted(files, key=lambda path: int(path.name.partition("-")[0]))]


def _evaluation(path: Path) -> Evaluation:
  raw = json.loads(path.read_text(encoding="utf-8"))
  tasks = {task: entry for task, entry in raw["tasks"].items() if entry.get("mean") is not None}
  rewards = {task: entry["rewards"] for task, entry in tasks.items() if entry.get("rewards")}
  intervals = {task: Interval(entry["mean"], entry["low"], entry["high"]) for task, entry in tasks.items()}
  entry = raw.get("overall") or {}
  overall = Interval(entry["mean"], entry["low"], entry["high"]) if entry.get("mean") is not None else None
  if overall is None and rewards and len(rewards) == len(tasks):
    overall = bootstrap(_pooled(rewards, sorted(rewards)))
  return Evaluation(path.stem, raw["name"], raw["stage"], raw["step"], intervals, overall, rewards)


def _chosen(evaluations: Sequence[Evaluation], name: str | None, default: int) -> Evaluation | None:
  if name is None:
    return evaluations[default] if evaluations else None
  found = [evaluation for evaluation in evaluations if evaluation.name == name]
  if not found:
    raise ValueError(f"no evaluation is named {name!r}; there are {[evaluation.name for evaluation in evaluations]}")
  return found[0]


def _pooled(rewards: Mapping[str, Any], tasks: Sequence[str]) -> np.ndarray:
  return np.concatenate([per_prompt(rewards[task]) for task in tasks])


def compare(before: Evaluation, after: Evaluation) -> list[Comparison]:
  """Overall first, then every task that either has; differences are paired by prompt, where the prompts are as many."""
  tasks = list(dict.fromkeys([*before.tasks, *after.tasks]))
  lines = []
  for task in tasks:
    old, new = before.rewards.get(task), after.rewards.get(task)
    difference = paired_difference(old, new) if old and new and len(old) == len(new) else None
    count = len(new) if new else None
    lines.append(Comparison(task, count, before.tasks.get(task), after.tasks.get(task), difference))
  paired = bool(lines) and all(line.difference is not None for line in lines)
  overall = paired_difference(_pooled(before.rewards, tasks), _pooled(after.rewards, tasks)) if paired else None
  prompts = sum(line.prompts or 0 for line in lines) if paired else None
  return [Comparison("overall", prompts, before.overall, after.overall, overall), *lines]


def summary(config: Mapping[str, Any]) -> list[tuple[str, str]]:
  """(dotted name, value) of the config's leaves that describe a run best."""

  def leaves(node: Any, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(node, Mapping):
      return [leaf for key, value in node.items() for leaf in leaves(value, (*path, str(key)))]
    return [(path, node)]

  shown = [(path, value) for path, value in leaves(config, ()) if path and path[-1] in SUMMARY and value is not None]
  shown.sort(key=lambda leaf: SUMMARY.index(leaf[0][-1]))
  return [(".".join(path), f"{value}") for path, value in shown][:16]


def stage_summaries(rows: Rows, timing: Rows) -> list[StageSummary]:
  """Steps, time and work of every stage, in the order of the run."""

  def total(values: list[Any]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None

  def median(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None

  found = []
  for stage in dict.fromkeys(row["stage"] for row in rows):
    steps = [row for row in rows if row["stage"] == stage]
    times = [row for row in timing if row["stage"] == stage]
    wall = total([row.get("seconds") for row in times])
    found.append(
      StageSummary(
        name=stage,
        steps=len(steps),
        wall=None if wall is None else duration(wall),
        seconds=median([row.get("seconds") for row in times]),
        tokens_per_second=median([row.get("tokens_per_second") for row in times]),
        prefill_tokens=total([row.get("prefill_tokens") for row in steps]),
        compilations=total([row.get("compilations") for row in times]),
        skipped=sum(bool(row.get("skipped")) for row in steps),
      )
    )
  return found


def _pictures(rows: Rows, timing: Rows, evaluations: Sequence[Evaluation]) -> list[Picture]:
  held_out = [HeldOut(one.step, one.overall) for one in evaluations if one.overall is not None]
  drawn = [
    plots.reward(rows, held_out),
    plots.entropy(rows),
    plots.responses(rows),
    plots.groups(rows),
    plots.gap(rows),
    plots.gradient(rows),
    plots.failures(rows),
    plots.warm_start(rows),
    plots.speed(timing),
  ]
  return [picture for picture in drawn if picture is not None]


def _task_pictures(rows: Rows, evaluations: Sequence[Evaluation]) -> list[Picture]:
  trained = {task for row in rows for task in row.get("reward_by_task") or {}}
  tasks = [task for task in _tasks(evaluations) if task in trained]
  tasks += sorted(trained - set(tasks))
  seen = [column(rows, "reward_by_task", task) for task in tasks]
  seen.append(np.array([interval.high for one in evaluations for interval in one.tasks.values()]))
  top = plots.fraction_top(np.concatenate(seen))
  drawn = []
  for task in tasks:
    held_out = [HeldOut(one.step, one.tasks[task]) for one in evaluations if task in one.tasks]
    drawn.append(plots.reward(rows, held_out, task, top))
  return [picture for picture in drawn if picture is not None]


def _tasks(evaluations: Sequence[Evaluation]) -> list[str]:
  return list(dict.fromkeys(task for evaluation in evaluations for task in evaluation.tasks))


def sample_transcripts(folder: Path, evaluation: Evaluation | None) -> list[dict[str, Any]]:
  """Ten transcripts of the evaluation, the tasks in turn; which of a task's is chance, but the same every time."""
  if evaluation is None:
    return []
  rows = read_rows(folder / "evaluation" / f"{evaluation.file}.transcripts.jsonl")
  order = np.random.default_rng(0).permutation(len(rows))
  by_task: dict[str, list[dict[str, Any]]] = {}
  for index in order:
    by_task.setdefault(rows[index]["task"], []).append(rows[index])
  longest = max((len(some) for some in by_task.values()), default=0)
  turns = [by_task[task][turn] for turn in range(longest) for task in sorted(by_task) if turn < len(by_task[task])]
  return [_transcript(row) for row in turns[:TRANSCRIPTS]]


def _transcript(row: Mapping[str, Any]) -> dict[str, Any]:
  context, response = str(row.get("context") or ""), str(row.get("response") or "")
  thought, end, answer = response.rpartition("</think>")
  half = CONTEXT_CHARACTERS // 2
  cut = max(0, len(context) - CONTEXT_CHARACTERS)
  shown = context if not cut else f"{context[:half]}\n\n[… {cut:,} characters not shown …]\n\n{context[-half:]}"
  known = {name: row.get(name) for name in ("id", "task", "question", "gold", "answer", "reward", "failure")}
  return known | {"context": shown, "characters": len(context), "thought": thought + end, "rest": answer}

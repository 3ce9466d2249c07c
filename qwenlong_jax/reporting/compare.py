"""Runs beside each other: an ablation's table (mean ± standard error over seeds) and its learning curves."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwenlong_jax.files import write_text
from qwenlong_jax.reporting import plots
from qwenlong_jax.reporting.page import read_config, read_evaluations, render
from qwenlong_jax.reporting.writer import read_rows


@dataclass(frozen=True)
class Result:
  """The scores of one run: `scores` by column, such as "overall" and the tasks."""

  name: str
  seed: int
  scores: dict[str, float]


@dataclass(frozen=True)
class Cell:
  """Mean over `seeds` runs and its standard error (sample standard deviation / sqrt(seeds)); None for a single run."""

  mean: float
  error: float | None
  seeds: int

  def __str__(self) -> str:
    return f"{self.mean:.3f}" + (f" ± {self.error:.3f}" if self.error is not None else "")


def over_seeds(values: Sequence[float]) -> Cell | None:
  """The cell of one variant and column; None without values."""
  if not len(values):
    return None
  error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
  return Cell(float(np.mean(values)), error, len(values))


def cells(rows: Sequence[Result]) -> tuple[list[str], dict[str, dict[str, Cell | None]]]:
  """The columns, and every variant's cell in each; both in order of first appearance. A seed may run only once."""
  columns = list(dict.fromkeys(column for row in rows for column in row.scores))
  variants: dict[str, list[Result]] = {}
  for row in rows:
    group = variants.setdefault(row.name, [])
    if any(other.seed == row.seed for other in group):
      raise ValueError(f"{row.name!r} has two results of seed {row.seed}; a seed counts once")
    group.append(row)
  return columns, {
    name: {column: over_seeds([one.scores[column] for one in group if column in one.scores]) for column in columns}
    for name, group in variants.items()
  }


def against(rows: Sequence[Result], baseline: str, column: str) -> dict[str, Cell | None]:
  """Every variant's difference from the baseline in one column, paired by seed."""
  scores = {(row.name, row.seed): row.scores[column] for row in rows if column in row.scores}
  if not any(name == baseline for name, _ in scores):
    raise ValueError(f"no result named {baseline!r} has {column!r}; there are {sorted({row.name for row in rows})}")
  names = [name for name in dict.fromkeys(row.name for row in rows) if name != baseline]
  return {
    name: over_seeds(
      [scores[name, s] - scores[baseline, s] for n, s in scores if n == name and (baseline, s) in scores]
    )
    for name in names
  }


def table(rows: Sequence[Result], markdown: bool = False, baseline: str | None = None) -> str:
  """The ablation's table as aligned text, or as Markdown: a variant per line, mean ± standard error over its seeds.

  With a baseline, a last column holds the difference of the first column from it, paired by seed.
  """
  grid = lines(rows, baseline)
  if markdown:
    return as_markdown(grid)
  widths = [max(len(line[i]) for line in grid) for i in range(len(grid[0]))]
  return "\n".join(
    "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]).rstrip()
    for line in grid
  )


def as_markdown(grid: Sequence[Sequence[str]]) -> str:
  """A table of text as Markdown, its first line the heading."""
  rule = ["---", *["---:"] * (len(grid[0]) - 1)]
  return "\n".join(
    "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in [grid[0], rule, *grid[1:]]
  )


def lines(rows: Sequence[Result], baseline: str | None = None) -> list[list[str]]:
  """The table's cells as text, the heading first."""
  if not rows:
    raise ValueError("no results to tabulate; give one per run")
  columns, body = cells(rows)
  seeds = {name: len([row for row in rows if row.name == name]) for name in body}
  found = [["variant", "seeds", *columns]]
  found += [
    [name, str(seeds[name]), *(str(line[c]) if line[c] else "-" for c in columns)] for name, line in body.items()
  ]
  if baseline is not None:
    differences = against(rows, baseline, columns[0])
    found[0].append(f"{columns[0]} - {baseline}")
    for texts in found[1:]:
      cell = differences.get(texts[0])
      texts.append(
        "-" if cell is None else f"{cell.mean:+.3f}" + ("" if cell.error is None else f" ± {cell.error:.3f}")
      )
  return found


def result(name: str, workdir: str | os.PathLike[str]) -> Result:
  """The scores of a run's last evaluation; its seed is config.json's `seed`."""
  evaluations = read_evaluations(Path(workdir))
  if not evaluations:
    raise ValueError(f"{workdir} holds no evaluation; let the run finish one, or leave it out")
  last = evaluations[-1]
  scores = {"overall": last.overall.mean} if last.overall is not None else {}
  seed = read_config(Path(workdir)).get("seed")
  if not isinstance(seed, int):
    raise ValueError(f"{workdir}/config.json has no whole number `seed` ({json.dumps(seed)}); seeds pair the runs")
  return Result(name, seed, scores | {task: interval.mean for task, interval in last.tasks.items()})


def compare_page(
  runs: Mapping[str, Sequence[str | os.PathLike[str]]],
  path: str | os.PathLike[str],
  title: str = "Ablation",
  baseline: str | None = None,
) -> Path:
  """Writes one HTML page about several variants, each a name and the workdirs of its seeds; returns its path."""
  rows = [result(name, workdir) for name, workdirs in runs.items() for workdir in workdirs]
  curves = {
    name: [read_rows(Path(workdir) / "metrics.jsonl") for workdir in workdirs] for name, workdirs in runs.items()
  }
  pictures = [
    plots.variants(curves, "reward", "Reward", "mean reward"),
    plots.variants(curves, "entropy", "Entropy", "nats"),
    plots.variants(curves, "response_length", "Response length", "tokens"),
  ]
  page = render(
    "compare.html.jinja",
    title=title,
    table=lines(rows, baseline),
    markdown=table(rows, markdown=True, baseline=baseline),
    pictures=[picture for picture in pictures if picture is not None],
  )
  return write_text(Path(path), page)

"""Figures of what data sets hold: histograms stacked by task, and bars of kinds. Tasks keep their colours in all."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qwenlong_jax.reporting.canvas import COLORS, INK, WIDE, Picture, data_uri, styled
from qwenlong_jax.reporting.facts import Fact, tasks
from qwenlong_jax.reporting.plots import task_title

BINS = 5  # of pass@k
Values = Mapping[str, Sequence[float]]


def pictures(facts: Sequence[Fact]) -> list[Picture]:
  """Everything there is something to draw of."""
  single = sum(len(fact.depths) < 2 for fact in facts)
  lengths = _by_task(facts, lambda fact: [fact.tokens])
  drawn = [
    histogram("Length", "Of context and question, in tokens.", lengths, _doubling(lengths), "tokens", log=True),
    histogram(
      "Depth of evidence",
      "Where in its context each piece of evidence stands: 0 its beginning, 1 its end.",
      _by_task(facts, lambda fact: fact.depths),
      np.linspace(0, 1, 21),
      "relative position",
    ),
    _reach(facts, single),
    _whole("Pieces of evidence", "In a sample.", _by_task(facts, lambda fact: [len(fact.depths)]), "pieces"),
    _whole("Documents with evidence", "In a sample.", _by_task(facts, lambda fact: [fact.documents]), "documents"),
    kinds(facts),
    difficulty(facts),
  ]
  return [picture for picture in drawn if picture is not None]


def difficulty(facts: Sequence[Fact]) -> Picture | None:
  rates = _by_task(facts, lambda fact: [fact.pass_rate])
  known = sum(map(len, rates.values()))
  caption = f"pass@k under a model, of {known:,} of {len(facts):,} samples."
  return histogram("Difficulty", caption, rates, np.linspace(0, 1, BINS + 1), "pass@k")


def _reach(facts: Sequence[Fact], single: int) -> Picture | None:
  values = _by_task(facts, lambda fact: [fact.reach])
  caption = f"From the first to the last piece of a sample, in tokens; {single:,} samples have a single one."
  return histogram("Distance between evidence", caption, values, _doubling(values), "tokens", log=True)


def _whole(title: str, caption: str, values: Values, unit: str) -> Picture | None:
  """Of small whole numbers, a bar for each; those beyond the 98th percentile or 20 stand in the last one."""
  every = [value for group in values.values() for value in group]
  if not every:
    return None
  last = min(max(int(np.percentile(every, 98)), 1), 20)
  if max(every) > last:
    caption += f" The last bar holds those of {last} and more."
    values = {task: [min(value, last) for value in group] for task, group in values.items()}
  return histogram(title, caption, values, np.arange(min(*every, last), last + 2) - 0.5, unit)


@styled
def histogram(
  title: str, caption: str, values: Values, edges: np.ndarray, unit: str, log: bool = False
) -> Picture | None:
  """Samples (or what `values` counts) in each bin, the tasks stacked; None without values. `log`: the axis doubles."""
  from matplotlib.figure import Figure
  from matplotlib.ticker import MaxNLocator

  every = np.array([value for group in values.values() for value in group], float)
  if not every.size:
    return None
  figure = Figure(figsize=(WIDE[0], WIDE[1] + 0.6), layout="constrained")
  axis = figure.subplots()
  names = [task for task, group in values.items() if group]
  # `values` names all tasks, so that a task without values here does not move the others' colours.
  colors = [COLORS[list(values).index(task) % len(COLORS)] for task in names]
  style: Any = {"color": colors, "label": [task_title(task) for task in names], "edgecolor": "white", "linewidth": 0.5}
  axis.hist([np.asarray(values[task], float) for task in names], bins=list(edges), stacked=True, **style)
  axis.grid(axis="x", visible=False)
  axis.set_xlabel(unit)
  axis.set_ylabel("count")
  if (edges % 1 == 0.5).all():
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
  if log:
    axis.set_xscale("log", base=2)
    axis.set_xticks(list(edges), [_short(edge) for edge in edges])
  figure.legend(loc="outside upper left", ncols=3, columnspacing=0.8)
  middle = f"{np.median(every):,.2f}" if every.max() <= 1 else f"{np.median(every):,.0f}"
  return Picture(title, caption, data_uri(figure), f"{title}: {every.size:,} values, median {middle} {unit}.")


@styled
def kinds(facts: Sequence[Fact]) -> Picture | None:
  """How many samples there are of each kind, by task."""
  from matplotlib.figure import Figure

  order = tasks(facts)
  found = sorted({(order.index(fact.task), fact.kind) for fact in facts})
  if not found:
    return None
  counts = [sum((order.index(fact.task), fact.kind) == kind for fact in facts) for kind in found]
  figure = Figure(figsize=(WIDE[0], 0.8 + 0.24 * len(found)), layout="constrained")
  axis = figure.subplots()
  place = np.arange(len(found))[::-1]
  bars = axis.barh(place, counts, color=[COLORS[task % len(COLORS)] for task, _ in found], height=0.7)
  axis.bar_label(bars, [f"{count:,}" for count in counts], padding=3, color=INK)
  axis.set_yticks(place, [f"{task_title(order[task])}: {_words(kind)}" for task, kind in found], color=INK)
  axis.grid(axis="y", visible=False)
  axis.set_xlabel("samples")
  axis.margins(x=0.12)
  alt = ", ".join(f"{_words(kind)} {count:,}" for (_, kind), count in zip(found, counts))
  return Picture("Kinds", "", data_uri(figure), f"Samples of each kind: {alt}.")


def _words(name: str) -> str:
  # A dollar would begin a formula.
  return name.replace("_", " ").replace("$", r"\$")


def _by_task(facts: Sequence[Fact], values: Any) -> dict[str, list[float]]:
  """`values` of every fact (None left out), by task; all tasks are there."""
  found: dict[str, list[float]] = {task: [] for task in tasks(facts)}
  for fact in facts:
    found[fact.task] += [value for value in values(fact) if value is not None]
  return found


def _doubling(values: Values) -> np.ndarray:
  """Powers of two around all values."""
  every = [max(value, 1) for group in values.values() for value in group] or [1]
  return 2.0 ** np.arange(np.floor(np.log2(min(every))), np.floor(np.log2(max(every))) + 2)


def _short(tokens: float) -> str:
  """4096 as 4K."""
  return f"{tokens / 1024:.0f}K" if tokens >= 1024 else f"{tokens:.0f}"

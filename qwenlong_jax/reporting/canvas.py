"""What the figures share: their look, curves over steps (raw light, running mean bold), stage marks, SVG data URIs.

The colours (Okabe and Ito's, some darker) stay apart for colour-blind readers; text is never coloured alone.
"""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import groupby
from typing import Any, ParamSpec, TypeVar

import numpy as np
from jaxtyping import Float

INK, MUTED, GRID = "#1f2328", "#59636e", "#e3e6ea"
BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072b2", "#d55e00", "#009e73", "#a8528b", "#b87a00", "#3a8fc4"
COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)

# Inches; the page scales a figure to its column, so that 10 points read as about 14 pixels on a desk or a phone.
WIDE, SMALL = (5.4, 3.0), (3.6, 2.2)

STYLE: Any = {
  "font.family": "DejaVu Sans",
  "font.size": 10,
  "axes.edgecolor": "#aab2bb",
  "axes.labelcolor": MUTED,
  "axes.labelsize": 10,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": GRID,
  "grid.linewidth": 0.8,
  "xtick.color": MUTED,
  "ytick.color": MUTED,
  "xtick.labelsize": 9.5,
  "ytick.labelsize": 9.5,
  "legend.frameon": False,
  "legend.fontsize": 9.5,
  "legend.handlelength": 1.4,
  "legend.columnspacing": 1.2,
  "lines.solid_capstyle": "round",
  "svg.hashsalt": "qwenlong_jax",
}

Rows = Sequence[dict[str, Any]]
Arguments, Result = ParamSpec("Arguments"), TypeVar("Result")


def styled(draw: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
  """Draws in this project's look, whatever the user's matplotlibrc says."""

  @wraps(draw)
  def inside(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
    import matplotlib

    with matplotlib.rc_context(STYLE):
      return draw(*args, **kwargs)

  return inside


@dataclass(frozen=True)
class Picture:
  """A figure with its words; `image` is a data URI. `alt` says in words what the picture shows."""

  title: str
  caption: str
  image: str
  alt: str
  small: bool = False


def column(rows: Rows, name: str, key: str | None = None) -> Float[np.ndarray, " n"]:
  """A field (or one key of a field that is a dict) of every row; NaN where a row has none."""
  values = [row.get(name) if key is None else (row.get(name) or {}).get(key) for row in rows]
  return np.array([np.nan if value is None else float(value) for value in values], np.float64)


def window(count: int) -> int:
  """The width of the running mean: a twentieth of the curve; 1 (no smoothing) where there is little to smooth."""
  return 1 if count < 12 else max(3, round(count / 20))


def running_mean(values: Float[np.ndarray, " n"], width: int) -> Float[np.ndarray, " n"]:
  """The mean of the `width` values around each (fewer at the ends); NaNs are left out, and bridged."""
  known = np.isfinite(values)
  total = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
  count = np.concatenate([[0], np.cumsum(known)])
  index = np.arange(len(values))
  start, end = np.maximum(index - width // 2, 0), np.minimum(index - width // 2 + width, len(values))
  within = count[end] - count[start]
  return np.where(within > 0, (total[end] - total[start]) / np.maximum(within, 1), np.nan)


def spans(steps: Float[np.ndarray, " n"], active: Sequence[bool]) -> list[tuple[float, float]]:
  """[start, end) of every run of active steps, half a step to either side."""
  found: list[tuple[float, float]] = []
  for on, group in groupby(zip(steps, active), key=lambda pair: bool(pair[1])):
    members = [step for step, _ in group]
    if on:
      found.append((members[0] - 0.5, members[-1] + 0.5))
  return found


class Canvas:
  """Stacked panels over one step axis, with the stages' boundaries drawn in the end."""

  def __init__(self, rows: Rows, size: tuple[float, float], ratios: Sequence[float] = (1,)):
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    self.rows, self.steps = rows, column(rows, "step")
    layout = ConstrainedLayoutEngine(h_pad=0.03, w_pad=0.07, hspace=0.06)
    self.figure = Figure(figsize=size, layout=layout)
    axes = self.figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=list(ratios))
    self.axes = list(axes[:, 0])

  def curve(self, axis: Any, values: Float[np.ndarray, " n"], color: str, label: str | None = None) -> None:
    """Raw light, running mean bold; the mean starts anew with every stage, whose numbers may differ in kind."""
    width = window(int(np.isfinite(values).sum()))
    if width == 1:
      axis.plot(self.steps, values, color=color, lw=1.8, marker="o", ms=3.5, label=label)
      return
    for first, last in self._stages():
      steps, raw = self.steps[first:last], values[first:last]
      axis.plot(steps, raw, color=color, lw=0.8, alpha=0.35)
      axis.plot(steps, running_mean(raw, width), color=color, lw=2.2, label=label)
      label = None

  def _stages(self) -> list[tuple[int, int]]:
    starts = [i for i, row in enumerate(self.rows) if i == 0 or row["stage"] != self.rows[i - 1]["stage"]]
    return list(zip(starts, [*starts[1:], len(self.rows)]))

  def mark_stages(self, names: bool = True) -> None:
    """A dotted line where a stage begins; its name too, if there is more than one and room for it."""
    from matplotlib.transforms import blended_transform_factory

    stages = self._stages()
    if len(stages) < 2:
      return
    reach = self.steps[-1] - self.steps[0] + 1
    for first, last in stages:
      name, start, share = self.rows[first]["stage"], self.steps[first] - 0.5, (last - first) / len(self.rows)
      if first:
        for axis in self.axes:
          axis.axvline(start, color=MUTED, lw=1, ls=(0, (1, 2)))
      if names and share * 58 > len(name):
        top = self.axes[0]
        place = blended_transform_factory(top.transData, top.transAxes)
        top.text(start + 0.008 * reach, 1.0, name, transform=place, fontsize=8.5, color=MUTED, va="bottom", ha="left")

  def legend(self, axis: Any, entries: int) -> None:
    above = 1.07 if axis is self.axes[0] and len(self._stages()) > 1 else 0.99
    axis.legend(loc="lower left", bbox_to_anchor=(-0.01, above), ncols=entries, borderaxespad=0)

  def finish(self, title: str, caption: str, alt: str, small: bool = False) -> Picture:
    from matplotlib.ticker import MaxNLocator

    self.mark_stages(names=not small)
    last = self.axes[-1]
    last.set_xlabel("step")
    last.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5 if small else 8))
    first, final = self.steps[0], self.steps[-1]
    margin = max(0.5, (0.05 if small else 0.025) * (final - first))
    last.set_xlim(first - margin, final + margin)
    return Picture(title, caption, data_uri(self.figure), alt, small)


def data_uri(figure: Any) -> str:
  """The figure as an SVG data URI, the same bytes each time: inside <img> the ids of two figures cannot collide."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format="svg", metadata={"Date": None})
  return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()

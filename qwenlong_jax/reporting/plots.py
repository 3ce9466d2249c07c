"""The figures of a run, drawn from rows of metrics.jsonl or timing.jsonl; None where those rows lack the numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from qwenlong_jax.reporting.canvas import (
  BLUE,
  COLORS,
  GREEN,
  INK,
  MUTED,
  ORANGE,
  PURPLE,
  SMALL,
  VERMILION,
  WIDE,
  Canvas,
  Picture,
  Rows,
  column,
  data_uri,
  running_mean,
  spans,
  styled,
  window,
)
from qwenlong_jax.reporting.intervals import Interval


@dataclass(frozen=True)
class HeldOut:
  """A held-out mean with its interval, to be drawn over the training curve at `step`."""

  step: int
  interval: Interval


def task_title(task: str) -> str:
  """`multi_hop` as a heading."""
  return task.replace("_", " ").capitalize()


def _with(rows: Rows, *names: str) -> Rows:
  """The stretch of rows from the first to the last that has any of the fields."""
  having = [i for i, row in enumerate(rows) if any(row.get(name) not in (None, {}) for name in names)]
  return rows[having[0] : having[-1] + 1] if having else []


def _range(values: Float[np.ndarray, " n"], form: str = ".3g") -> str:
  """For alt texts: where a curve begins and ends."""
  known = values[np.isfinite(values)]
  return f"from {known[0]:{form}} to {known[-1]:{form}}" if known.size else "without values"


def fraction_top(values: Float[np.ndarray, " n"]) -> float:
  """Where the axis of a fraction ends: 1 if the values come near it, less otherwise so that slow progress is seen."""
  largest = values[np.isfinite(values)].max(initial=0.0)
  return 1.03 if largest > 0.6 else float(max(1.15 * largest, 0.05))


@styled
def reward(
  rows: Rows, held_out: Sequence[HeldOut] = (), task: str | None = None, top: float | None = None
) -> Picture | None:
  """The training batches' mean reward, overall or of one task, with the held-out means drawn over it.

  `top` ends the axis, so that several tasks can share a scale.
  """
  rows = _with(rows, "reward", "reward_by_task")
  values = column(rows, "reward") if task is None else column(rows, "reward_by_task", task)
  if not np.isfinite(values).any():
    return None
  canvas = Canvas(rows, (WIDE[0], WIDE[1] + 0.45) if task is None else SMALL)
  axis = canvas.axes[0]
  canvas.curve(axis, values, BLUE, "training batch")
  inside = [point for point in held_out if canvas.steps[0] - 1 <= point.step <= canvas.steps[-1] + 1]
  if inside:
    means = np.array([point.interval.mean for point in inside])
    bounds = np.array([[point.interval.low, point.interval.high] for point in inside]).T
    reach = np.abs(bounds - means)
    style: dict[str, Any] = {
      "color": INK,
      "ms": 5,
      "capsize": 3,
      "lw": 1.2,
      "label": "held out, 95% interval",
      "zorder": 5,
    }
    axis.errorbar([point.step for point in inside], means, reach, fmt="D", **style)
    values = np.concatenate([values, bounds[1]])
  axis.set_ylim(0, fraction_top(values) if top is None else top)
  if task is None:
    axis.set_ylabel("mean reward")
    canvas.legend(axis, 2)
  title = "Reward" if task is None else task_title(task)
  caption = "Mean over the samples of each batch." if task is None else ""
  return canvas.finish(title, caption, f"{title}: mean reward by step, {_range(values)}.", small=task is not None)


@styled
def entropy(rows: Rows) -> Picture | None:
  """Entropy (eq. 11) against the band of AEPO, the steps on which negatives were masked, and the latch."""
  rows = _with(rows, "entropy")
  values = column(rows, "entropy")
  if not np.isfinite(values).any():
    return None
  canvas = Canvas(rows, (WIDE[0], WIDE[1] + 0.45), (8, 1))
  axis, strip = canvas.axes
  low, high = column(rows, "band_low"), column(rows, "band_high")
  if np.isfinite(high).any():
    axis.fill_between(canvas.steps, low, high, color=GREEN, alpha=0.13, lw=0, step="mid", label="band")
    for edge in (low, high):
      axis.plot(canvas.steps, edge, color=GREEN, lw=1, drawstyle="steps-mid")
  masked = column(rows, "masked_samples") > 0
  for number, (start, end) in enumerate(spans(canvas.steps, list(masked))):
    label = None if number else "negatives masked"
    axis.axvspan(start, end, color=ORANGE, alpha=0.16, lw=0, label=label)
  canvas.curve(axis, values, BLUE, "entropy")
  axis.set_ylim(bottom=0)
  axis.set_ylabel("nats")
  canvas.legend(axis, 3)
  latch = column(rows, "latch")
  for start, end in spans(canvas.steps, list(latch == 1)):
    strip.axvspan(start, end, color=INK, alpha=0.75, lw=0)
  strip.set_ylim(0, 1)
  strip.set_yticks([])
  strip.grid(False)
  strip.set_ylabel("latch", rotation=0, ha="right", va="center")
  steps = int(masked.sum())
  alt = f"Entropy of the policy by step, {_range(values)} nats; negatives were masked on {steps} of {len(rows)} steps."
  caption = (
    "Of the policy before each update (eq. 11). While the latch is on, samples with a negative advantage are masked: "
    f"here on {steps} of {len(rows)} steps."
  )
  return canvas.finish("Entropy and its band", caption, alt)


@styled
def warm_start(rows: Rows) -> Picture | None:
  """Negative log-likelihood and next-token accuracy of the warm start."""
  rows = _with(rows, "nll", "accuracy")
  nll, accuracy = column(rows, "nll"), column(rows, "accuracy")
  panels = [(n, v, c) for n, v, c in (("NLL (nats)", nll, BLUE), ("accuracy", accuracy, GREEN)) if np.isfinite(v).any()]
  if not panels:
    return None
  canvas = Canvas(rows, (WIDE[0], WIDE[1] + 0.3), (1,) * len(panels))
  for axis, (name, values, color) in zip(canvas.axes, panels):
    canvas.curve(axis, values, color)
    axis.set_ylabel(name)
  alt = f"Warm start by step: negative log-likelihood {_range(nll)} nats, next-token accuracy {_range(accuracy)}."
  return canvas.finish("Warm start", "Supervised training before reinforcement learning.", alt)


@styled
def responses(rows: Rows) -> Picture | None:
  """Response length, and the fraction of responses that ended with a stop token."""
  rows = _with(rows, "response_length", "stopped_fraction")
  length, stopped = column(rows, "response_length"), column(rows, "stopped_fraction")
  panels = [(n, v) for n, v in (("tokens", length), ("stopped", stopped)) if np.isfinite(v).any()]
  if not panels:
    return None
  canvas = Canvas(rows, (WIDE[0], WIDE[1] + 0.3), (3, 2)[: len(panels)])
  for axis, (name, values), color in zip(canvas.axes, panels, (BLUE, GREEN)):
    canvas.curve(axis, values, color)
    axis.set_ylabel(name)
    axis.set_ylim(bottom=0, top=1.05 if name == "stopped" else None)
  caption = "Mean response length, and the fraction that a stop token ended; the token budget cut off the others."
  alt = f"Response length by step, {_range(length)} tokens; stopped fraction {_range(stopped)}."
  return canvas.finish("Response length", caption, alt)


@styled
def groups(rows: Rows) -> Picture | None:
  """Groups without a signal, and samples that AEPO masked."""
  rows = _with(rows, "zero_variance_groups")
  values = column(rows, "zero_variance_groups")
  if not np.isfinite(values).any():
    return None
  canvas = Canvas(rows, WIDE)
  canvas.curve(canvas.axes[0], values, PURPLE)
  canvas.axes[0].set_ylim(bottom=0, top=1 if np.nanmax(values) == 0 else None)
  canvas.axes[0].set_ylabel("groups per batch")
  caption = "Groups whose rewards are all equal teach nothing: every advantage in them is 0."
  return canvas.finish("Groups of equal rewards", caption, f"Groups of equal rewards by step, {_range(values)}.")


def _positive(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
  """For log axes: zero and less become NaN."""
  return np.where(values > 0, values, np.nan)


def _log_scale(axis: Any, *curves: Float[np.ndarray, " n"]) -> None:
  """A log axis with at least one labelled decade on it."""
  from matplotlib.ticker import LogFormatterSciNotation, LogLocator

  known = np.concatenate([curve[np.isfinite(curve)] for curve in curves])
  low, high = known.min(), known.max()
  room = 10**0.5 if high / low < 10 else 1.3
  axis.set_ylim(low / room, high * room)
  axis.set_yscale("log")
  axis.yaxis.set_major_locator(LogLocator(numticks=6))
  axis.yaxis.set_major_formatter(LogFormatterSciNotation(labelOnlyBase=False))
  axis.minorticks_off()


@styled
def gap(rows: Rows) -> Picture | None:
  """|log-probability under the sampler - under the trainer|, mean and maximum, on a log axis."""
  rows = _with(rows, "gap_mean", "gap_max")
  mean, largest = _positive(column(rows, "gap_mean")), _positive(column(rows, "gap_max"))
  panels = [(n, v, c) for n, v, c in (("maximum", largest, ORANGE), ("mean", mean, BLUE)) if np.isfinite(v).any()]
  if not panels:
    return None
  canvas = Canvas(rows, WIDE)
  axis = canvas.axes[0]
  for name, values, color in panels:
    canvas.curve(axis, values, color, name)
  _log_scale(axis, *(values for _, values, _ in panels))
  axis.set_ylabel("nats (log scale)")
  canvas.legend(axis, 2)
  caption = (
    "|log-probability of a sampled token under the sampler - under the trainer|. On-policy learning needs it small."
  )
  alt = f"Gap between sampler and trainer by step: mean {_range(mean)}, maximum {_range(largest)} nats."
  return canvas.finish("Sampler-trainer gap", caption, alt)


@styled
def gradient(rows: Rows) -> Picture | None:
  """The gradient's norm on a log axis, with the steps on which the optimizer was skipped."""
  rows = _with(rows, "gradient_norm")
  values = _positive(column(rows, "gradient_norm"))
  if not np.isfinite(values).any():
    return None
  canvas = Canvas(rows, WIDE)
  axis = canvas.axes[0]
  canvas.curve(axis, values, BLUE)
  _log_scale(axis, values)
  axis.set_ylabel("L2 norm (log scale)")
  skips = {reason: [row["step"] for row in rows if row.get("skipped") == reason] for reason in _reasons(rows)}
  for (reason, steps), marker, color in zip(skips.items(), ("v", "x", "s"), (INK, VERMILION, PURPLE)):
    words = f"skipped: {reason.replace('_', ' ')} ({len(steps)})"
    place = axis.get_xaxis_transform()
    axis.plot(steps, [0.04] * len(steps), marker, color=color, ms=5.5, transform=place, label=words, clip_on=False)
  if skips:
    canvas.legend(axis, 2)
  caption = "Before clipping. On a skipped step the optimizer, its moments and its weight decay are left alone."
  alt = f"Gradient norm by step, {_range(values)}; {sum(map(len, skips.values()))} steps skipped."
  return canvas.finish("Gradient norm", caption, alt)


def _reasons(rows: Rows) -> list[str]:
  return sorted({row["skipped"] for row in rows if row.get("skipped")})


@styled
def failures(rows: Rows) -> Picture | None:
  """How many responses failed for which reason: the four commonest reasons and the others together."""
  rows = _with(rows, "failures")
  totals: dict[str, int] = {}
  for row in rows:
    for reason, count in (row.get("failures") or {}).items():
      totals[reason] = totals.get(reason, 0) + (count or 0)
  if not any(totals.values()):
    return None
  common = sorted(totals, key=lambda reason: -totals[reason])[:4]
  canvas = Canvas(rows, WIDE)
  axis = canvas.axes[0]
  counts = {reason: np.nan_to_num(column(rows, "failures", reason)) for reason in common}
  rest = sum(
    (np.nan_to_num(column(rows, "failures", reason)) for reason in totals if reason not in common), 0 * canvas.steps
  )
  if rest.any():
    counts["others"] = rest
  for (reason, values), color in zip(counts.items(), COLORS):
    canvas.curve(axis, values, color, reason.replace("_", " "))
  axis.set_ylim(bottom=0)
  axis.set_ylabel("responses per batch")
  canvas.legend(axis, 3)
  named = ", ".join(f"{reason} {totals[reason]}" for reason in common)
  return canvas.finish("Failures", "Responses without a reward, by reason.", f"Failures by reason: {named}.")


@styled
def speed(timing: Rows) -> Picture | None:
  """Tokens per second of wall clock."""
  timing = _with(timing, "tokens_per_second")
  values = column(timing, "tokens_per_second")
  if not np.isfinite(values).any():
    return None
  canvas = Canvas(timing, WIDE)
  canvas.curve(canvas.axes[0], values, BLUE)
  canvas.axes[0].set_ylim(bottom=0)
  canvas.axes[0].set_ylabel("tokens per second")
  return canvas.finish(
    "Speed", "Of the whole step, by the wall clock.", f"Tokens per second by step, {_range(values)}."
  )


@styled
def comparison(before: Mapping[str, Interval], after: Mapping[str, Interval]) -> Picture | None:
  """Held-out means of every task before and after, with their intervals."""
  from matplotlib.figure import Figure

  names = [task for task in before if task in after]
  if not names:
    return None
  figure = Figure(figsize=(WIDE[0], 1.0 + 0.5 * len(names)), layout="constrained")
  axis = figure.subplots()
  place = np.arange(len(names))[::-1]
  for side, offset, color, fill, label in (
    (before, 0.14, MUTED, "white", "before"),
    (after, -0.14, BLUE, BLUE, "after"),
  ):
    means = np.array([side[name].mean for name in names])
    reach = np.abs(np.array([[side[name].low, side[name].high] for name in names]).T - means)
    style: dict[str, Any] = {
      "color": color,
      "mfc": fill,
      "mew": 1.6,
      "ms": 6.5,
      "capsize": 3,
      "lw": 1.6,
      "label": label,
    }
    axis.errorbar(means, place + offset, xerr=reach, fmt="o", **style)
  axis.set_yticks(place, [task_title(name) for name in names], color=INK)
  axis.grid(axis="y", visible=False)
  axis.set_ylim(-0.6, len(names) - 0.4)
  axis.set_xlim(left=min(0, axis.get_xlim()[0]))
  axis.set_xlabel("mean held-out reward, 95% interval")
  axis.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, borderaxespad=0)
  alt = "; ".join(f"{task_title(n)}: {before[n].mean:.3f} before, {after[n].mean:.3f} after" for n in names)
  return Picture("Before and after, by task", "", data_uri(figure), alt + ".")


@styled
def variants(curves: Mapping[str, Sequence[Rows]], name: str, title: str, unit: str) -> Picture | None:
  """One field of several variants, each a list of its seeds' rows: their mean, shaded from lowest to highest."""
  known = {variant: [_with(rows, name) for rows in seeds if _with(rows, name)] for variant, seeds in curves.items()}
  known = {variant: seeds for variant, seeds in known.items() if seeds}
  if not known:
    return None
  longest = max((rows for seeds in known.values() for rows in seeds), key=len)
  canvas = Canvas(longest, (WIDE[0], WIDE[1] + 0.2))
  axis = canvas.axes[0]
  for number, (variant, seeds) in enumerate(known.items()):
    # Seeds are compared over the steps that all of them have reached.
    count = min(map(len, seeds))
    steps = column(seeds[0], "step")[:count]
    values = np.stack([column(rows, name)[:count] for rows in seeds])
    smooth = np.stack([running_mean(one, window(count)) for one in values])
    style: Any = {"color": COLORS[number % len(COLORS)], "ls": ("-", "--", ":")[number // len(COLORS) % 3]}
    axis.plot(steps, smooth.mean(axis=0), lw=2, label=variant, **style)
    if len(seeds) > 1:
      axis.fill_between(steps, smooth.min(axis=0), smooth.max(axis=0), color=style["color"], alpha=0.15, lw=0)
  axis.set_ylabel(unit)
  canvas.legend(axis, 3)
  return canvas.finish(title, "", f"{title} by step of {', '.join(known)}.")

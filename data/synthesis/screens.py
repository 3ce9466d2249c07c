"""The two screens of section 3 over samples of any task, and each sample's difficulty by pass@k."""

from collections.abc import Sequence
from dataclasses import replace

from qwenlong_jax.data.selection import pass_bins
from qwenlong_jax.data.verification_by_model import Panel, Rejection, grounded, robust
from qwenlong_jax.types import Example


def screen(
  examples: Sequence[Example], panel: Panel, guesses: int, bins: int
) -> tuple[dict[str, Example], dict[str, Rejection]]:
  """(what passed, what did not), by id.

  First without the context, where `guesses` right answers to a multiple choice question prove nothing; then, what is
  not known, with it. What passes says in its provenance its pass@k, `pass_rate`, and which of the `bins` uniform ones
  holds that, counted from 0, `difficulty`.
  """
  kept: list[Example] = []
  rejected: list[Rejection] = []
  for choices in (True, False):
    of_kind = [example for example in examples if (example.task == "multiple_choice") is choices]
    checked = grounded(of_kind, panel, guesses if choices else 0)
    kept += checked.kept
    rejected += checked.rejected
  checked = robust(kept, panel)
  passed = {example.id: _with_difficulty(example, bins) for example in checked.kept}
  return passed, {one.id: one for one in (*rejected, *checked.rejected)}


def _with_difficulty(example: Example, bins: int) -> Example:
  solved = example.provenance["checks"]["robust"]
  rate = solved["right"] / solved["samples"]
  (number,) = pass_bins([rate], bins)
  return replace(example, provenance={**example.provenance, "pass_rate": rate, "difficulty": number})

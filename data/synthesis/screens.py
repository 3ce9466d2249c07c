"""The two screens of section 3 over samples of any task, and each sample's difficulty by pass@k."""

from collections.abc import Sequence
from dataclasses import replace

from qwenlong_jax.data.selection import pass_bins
from qwenlong_jax.data.verification_by_model import Panel, Rejection, grounded, robust, with_check
from qwenlong_jax.types import Example


def screen(
  examples: Sequence[Example], panel: Panel, guesses: int, bins: int, room: int | None = None
) -> tuple[dict[str, Example], dict[str, Rejection]]:
  """(what passed, what did not), by id.

  First without the context, where `guesses` right answers to a multiple choice question prove nothing; then, what is
  not known, with it. What passes says in its provenance its pass@k as the reward sees it, `pass_rate`, and which of the
  `bins` uniform ones holds that, counted from 0, `difficulty`. What is longer than the `room` that the solver has for
  it (tokens) passes without, and its check says so: nobody has seen that the context bears the answer.
  """
  kept: list[Example] = []
  rejected: list[Rejection] = []
  for choices in (True, False):
    of_kind = [example for example in examples if (example.task == "multiple_choice") is choices]
    checked = grounded(of_kind, panel, guesses if choices else 0)
    kept += checked.kept
    rejected += checked.rejected
  long = [example for example in kept if room is not None and example.provenance["tokens"] > room]
  checked = robust([example for example in kept if example not in long], panel)
  passed = {example.id: _with_difficulty(example, bins) for example in checked.kept}
  passed |= {example.id: with_check(example, "robust", {"skipped": f"longer than {room} tokens"}) for example in long}
  return passed, {one.id: one for one in (*rejected, *checked.rejected)}


def _with_difficulty(example: Example, bins: int) -> Example:
  solved = example.provenance["checks"]["robust"]
  rate = solved["rewarded"] / solved["samples"]
  (number,) = pass_bins([rate], bins)
  return replace(example, provenance={**example.provenance, "pass_rate": rate, "difficulty": number})

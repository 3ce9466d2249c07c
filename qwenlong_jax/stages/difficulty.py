"""Which examples a stage trains on, by the pass@k that its policy reaches before its first step.

Two choices of the report: equal numbers from uniform bins of pass@k (section 4.2, before training) and what the policy
still fails ("retrospective sampling", between stages). k is the number of responses in a step, and an answer counts by
its reward. The choice is made once and kept in the workdir, and so are the rates, batch by batch.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from jaxtyping import PyTree

from qwenlong_jax.data import loading, selection
from qwenlong_jax.files import write_text
from qwenlong_jax.parallelism import hosts
from qwenlong_jax.rl.learner import TrainState
from qwenlong_jax.rollout.weights import for_decoding
from qwenlong_jax.stages.answering import Answered
from qwenlong_jax.stages.session import Session
from qwenlong_jax.stages.setup import Workshop, data_folder
from qwenlong_jax.types import TASKS, Example

# `answering.answer` of a stage: with its sampler, batch and lengths.
Ask = Callable[..., Iterator[Answered]]


def training_data(shop: Workshop, session: Session, state: TrainState, name: str, ask: Ask) -> Path:
  """The data set of the stage `name`: all of its examples, or those that `stage.below` and `stage.bins` choose.

  Raises:
    ValueError: the stage is under way and the choice that it began with is gone.
  """
  config = shop.config
  stage = config.stages[name]
  folder = data_folder(shop, "train", stage.prompt_tokens, config.data.examples)
  if not stage.below and not stage.bins:
    return folder
  chosen = folder.with_name(f"{folder.name}-{name}")
  if hosts.first((chosen / loading.MANIFEST).exists):
    return chosen
  if int(state.step):
    raise ValueError(
      f"{chosen}, which stage {name} chose for its training, is not there after {int(state.step)} of its steps; copy "
      "it back: the policy of now would choose others"
    )
  examples = loading.open_all(folder)
  rates = pass_rates(shop, session, state.params, examples, folder.with_name(f"{chosen.name}.rates.jsonl"), ask)
  tasks = [example.task for example in examples]
  places = choose(tasks, rates, stage.below, stage.bins, stage.per_bin, config.seed)
  kept = Counter(tasks[place] for place in places)
  shards = min(config.data.shards, *kept.values())
  hosts.first(lambda: loading.write_shards(chosen, (examples[place] for place in places), shards))
  hosts.say(
    f"{name}: pass@{config.batch.group} {sum(rates) / len(rates):.3f}; {len(places)} of {len(examples)} examples kept: "
    + ", ".join(f"{task} {kept[task]}" for task in TASKS if kept[task])
  )
  return chosen


def pass_rates(
  shop: Workshop, session: Session, params: PyTree, examples: Sequence[Example], path: Path, ask: Ask
) -> list[float]:
  """The mean reward of the policy's answers to each example; those that `path` holds are not asked for again."""
  rates = hosts.first(partial(kept_rates, path))
  weights = for_decoding(params, shop.mesh, shop.dtype)
  for batch in ask(weights, examples, begin=len(rates)):
    found = [float(rate) for rate in batch.rewards(shop).mean(1)]
    rates += found
    hosts.first(partial(append, path, found))
    session.stop_if_told(f"{len(rates)} of {len(examples)} examples are answered before the stage, which is kept")
  return rates


def choose(tasks: Sequence[str], rates: Sequence[float], below: float, bins: int, per_bin: int, seed: int) -> list[int]:
  """Places of the examples of a pass@k less than `below` (0: of all), of these `per_bin` of each task's `bins`.

  Where a task has none below, its hardest stay: a balanced batch needs every task.
  """
  places = list(range(len(tasks)))
  if below:
    hardest = dict.fromkeys(tasks, 1.0)
    for task, rate in zip(tasks, rates):
      hardest[task] = min(hardest[task], rate)
    places = [n for n in places if rates[n] < below or rates[n] == hardest[tasks[n]]]
  if bins:
    drawn = selection.stratify([tasks[n] for n in places], [rates[n] for n in places], bins, per_bin, seed)
    places = [places[n] for n in drawn]
  return places


def kept_rates(path: Path) -> list[float]:
  """The rates in a file of a line for each batch; a last line that was cut off is dropped from the file."""
  if not path.exists():
    return []
  text = path.read_text(encoding="utf-8")
  whole = text[: text.rfind("\n") + 1]
  if whole != text:
    write_text(path, whole)
  try:
    return [float(rate) for line in whole.splitlines() for rate in json.loads(line)]
  except (ValueError, TypeError) as error:
    raise ValueError(f"{path} is damaged ({error}); delete it to answer the examples again") from error


def append(path: Path, rates: Sequence[float]) -> None:
  with path.open("a", encoding="utf-8") as file:
    file.write(json.dumps(rates) + "\n")

"""Documents to verified training data: reads, deals, surveys, writes samples, and joins them to data sets by split.

The steps are `data.synthesis.steps`: functions of one element, run here by processes or by Apache Beam; what takes a
model is `synthesis_by_model`'s. The same call again goes on where it stopped.
"""

import json
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from qwenlong_jax import reporting
from qwenlong_jax.data import documents, loading
from qwenlong_jax.data.selection import Contamination
from qwenlong_jax.data.synthesis import steps
from qwenlong_jax.data.synthesis.steps import Settings
from qwenlong_jax.stages import synthesis_by_model as by_model
from qwenlong_jax.types import TASKS, Example

RUNNERS = ("local", "beam")
_ROUNDS = 5  # of writing more where some were given up


def run(config: ConfigDict, workdir: Path) -> None:
  """Makes the data sets `workdir/data/{train,validation,test}` of `config.documents`, and says what became of them.

  Raises:
    FileNotFoundError: a folder of documents is not there.
    ValueError: a setting that cannot be used, or documents that bear no sample.
    OSError: a model's endpoint that cannot be used, or a budget that is spent.
  """
  settings = settings_of(config, workdir)
  models = by_model.models_of(config, workdir)
  tests = Contamination.of(config.synthesis.decontaminate)
  run_all = partial(_by_beam if config.synthesis.runner == "beam" else _by_processes, workers=config.synthesis.workers)
  chunks = steps.chunks(settings)
  if not chunks:
    raise ValueError(f"no files in {', '.join(settings.documents)}; config.documents names folders of documents")
  run_all("reading", steps.read_chunk, settings, chunks)
  steps.gather(settings, (chunk.part(settings) for chunk in chunks))
  counts = json.loads((settings.parts("clusters") / "counts.json").read_text())
  if not counts["documents"]:
    raise ValueError(f"none of the files in {', '.join(settings.documents)} is a document: {_refused(settings)}")
  megabytes = counts["bytes"] / 1e6
  print(f"{counts['documents']:,} documents, {megabytes:,.1f} MB; left out: {_refused(settings)}", flush=True)
  if not config.tokenizer.path:
    steps.learn_tokenizer(settings)
  clusters = steps.clusters(settings)
  run_all("surveying", steps.survey, settings, clusters)
  made = by_model.write(settings, config, models) if models else []

  def write(blocks: Sequence[steps.Block]) -> None:
    run_all("writing", steps.write_block, settings, [block for block in blocks if not block.maker])
    if models and settings.screened:
      by_model.screen_all(settings, config, models, blocks)

  write(made)
  blocks = written(settings, tests, write, made)
  kept = join(settings, blocks, tests)
  for line in told(settings, kept):
    print(line, flush=True)
  found = reporting.survey({split: loading.read_each(workdir / "data" / split) for split in kept})
  page = reporting.synthesis_report(workdir, found, sum(len(chunk.files) for chunk in chunks))
  print(f"a page about it: {page}; the data sets' card: {reporting.data_card(workdir, found)}", flush=True)


def settings_of(config: ConfigDict, workdir: Path) -> Settings:
  settings = config.synthesis
  if settings.runner not in RUNNERS:
    raise ValueError(f"synthesis.runner={settings.runner!r} is not one of {', '.join(RUNNERS)}")
  for key in ("train", "validation", "test", "train_share", "validation_share", "test_share"):
    least = 1 if key == "train_share" else 0
    if settings[key] < least:
      raise ValueError(f"synthesis.{key}={settings[key]} must be at least {least}")
  documents.check(settings.languages)
  if not settings.targets or min(settings.targets) < 1000:
    raise ValueError(f"synthesis.targets={tuple(settings.targets)} must be lengths of at least 1,000 tokens")
  return Settings(
    folder=str(workdir),
    documents=tuple(str(Path(path).absolute()) for path in config.documents.split(",")),
    seed=config.seed,
    languages=tuple(settings.languages),
    threshold=settings.duplicate_threshold,
    cluster=settings.cluster_documents,
    shares=(("train", settings.train_share), ("validation", settings.validation_share), ("test", settings.test_share)),
    samples=(("train", settings.train), ("validation", settings.validation), ("test", settings.test)),
    targets=tuple(settings.targets),
    tokenizer=str(config.tokenizer.path or workdir / "tokenizer"),
    vocab_size=settings.vocab_size,
    screened=bool(config.llm.url and config.screens.samples),
  )


def _by_processes(
  what: str, step: Callable[[Settings, Any], None], settings: Settings, elements: Sequence[Any], workers: int
) -> None:
  """Runs a step on the elements whose parts are not there."""
  left = [element for element in elements if not element.part(settings).exists()]
  bar = tqdm(total=len(elements), initial=len(elements) - len(left), desc=what, dynamic_ncols=True)
  workers = min(workers or os.cpu_count() or 1, len(left))
  with bar:
    if workers < 2:
      for element in left:
        step(settings, element)
        bar.update()
      return
    # Spawned: a fork of a process that has threads may hang.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
      for done in as_completed([pool.submit(step, settings, element) for element in left]):
        done.result()
        bar.update()


def _by_beam(
  what: str, step: Callable[[Settings, Any], None], settings: Settings, elements: Sequence[Any], workers: int
) -> None:
  """Likewise as a Beam pipeline; its runner and options are those of the command line or of Beam's own defaults."""
  try:
    import apache_beam as beam
  except ImportError as error:
    raise ValueError("synthesis.runner='beam' needs Apache Beam: pip install 'qwenlong_jax[beam]'") from error
  left = [element for element in elements if not element.part(settings).exists()]
  print(f"{what}: {len(left)} of {len(elements)} elements by Beam", flush=True)
  with beam.Pipeline() as pipeline:
    _ = pipeline | beam.Create(left) | beam.Reshuffle() | beam.Map(partial(step, settings))


def written(
  settings: Settings,
  tests: Contamination,
  write: Callable[[Sequence[steps.Block]], None],
  made: Sequence[steps.Block],
) -> list[steps.Block]:
  """The blocks that together hold the samples that are wanted, as far as the documents bear them: after those that are
  `made` already, what they lack."""
  blocks = list(made)
  for _ in range(_ROUNDS):
    left = {
      (split, task): wanted - distinct(settings, tests, blocks, split, task)
      for split, wanted in settings.samples
      for task in TASKS
    }
    more = steps.blocks(settings, {key: number for key, number in left.items() if number > 0}, blocks)
    if not more:
      break
    write(more)
    blocks += more
  return blocks


def distinct(settings: Settings, tests: Contamination, blocks: Sequence[steps.Block], split: str, task: str) -> int:
  """How many samples of a task a split has that are to be kept."""
  seen = set()
  for block in blocks:
    if (block.cluster.split, block.task) == (split, task):
      for line in steps.samples(settings, block):
        if line["example"] is not None and not tests.hit(example := loading.example_of(line["example"])):
          seen.add((example.question, example.answer))
  return len(seen)


def join(settings: Settings, blocks: Sequence[steps.Block], tests: Contamination) -> dict[str, dict[str, int]]:
  """The data set of every split out of its parts, no question twice, none of `tests`; what became of all samples."""
  summary: dict[str, dict[str, int]] = {}
  for split, wanted in settings.samples:
    folder = Path(settings.folder) / "data" / split
    mine = [block for block in blocks if block.cluster.split == split]
    if not mine:
      continue
    if not (folder / loading.MANIFEST).exists():
      loading.write_shards(folder, _counted(mine, settings, wanted, tests, folder / "counts.json"))
    summary[split] = json.loads((folder / "counts.json").read_text())
  return summary


def _counted(
  blocks: Sequence[steps.Block], settings: Settings, wanted: int, tests: Contamination, path: Path
) -> Iterator[Example]:
  """The examples; behind the last of them it is written what became of all, before the data set is complete."""
  counts: Counter[str] = Counter()
  yield from _distinct(blocks, settings, wanted, tests, counts)
  steps.write_text(path, json.dumps(dict(sorted(counts.items())), indent=2))


def _distinct(
  blocks: Sequence[steps.Block], settings: Settings, wanted: int, tests: Contamination, counts: Counter[str]
) -> Iterator[Example]:
  """Of each task as many as are wanted, in turn from all clusters."""
  seen: set[tuple[str, str]] = set()
  for task in TASKS:
    kept = 0
    for line in _by_turns([block for block in blocks if block.task == task], settings):
      counts.update(f"dropped/{reason}" for reason in line["dropped"])
      if line["example"] is None:
        counts[f"{line.get('screened', 'given_up')}/{task}"] += 1
        continue
      example = loading.example_of(line["example"])
      key = example.question, example.answer
      if key in seen or kept == wanted:
        counts[f"{'duplicate' if key in seen else 'surplus'}/{task}"] += 1
        continue
      if reason := tests.hit(example):
        counts[f"contaminated/{task}"] += 1
        print(f"left out {example.id}: {reason}", flush=True)
        continue
      seen.add(key)
      kept += 1
      yield example
    counts[f"kept/{task}"] = kept


def _by_turns(blocks: Sequence[steps.Block], settings: Settings) -> Iterator[dict[str, Any]]:
  """The lines of all parts, one from each cluster at a time."""
  clusters = {block.cluster: [b for b in blocks if b.cluster == block.cluster] for block in blocks}

  def lines(mine: Sequence[steps.Block]) -> Iterator[dict[str, Any]]:
    for block in mine:
      yield from steps.samples(settings, block)

  for turn in zip_longest(*(lines(mine) for mine in clusters.values())):
    yield from (line for line in turn if line is not None)


def told(settings: Settings, counts: dict[str, dict[str, int]]) -> Iterator[str]:
  """A line for each split, and one for each task of which there are fewer samples than wanted."""
  for split, wanted in settings.samples:
    kept = {task: counts.get(split, {}).get(f"kept/{task}", 0) for task in TASKS}
    yield f"{split}: {sum(kept.values()):,} samples in {Path(settings.folder) / 'data' / split}"
    for task, number in kept.items():
      if number < wanted:
        yield f"  {task}: {number} of {wanted}; the documents bear no more (why drafts failed: counts.json there)"


def _refused(settings: Settings) -> str:
  lines = (settings.parts("clusters") / "refused.jsonl").read_text().split("\n")[:-1]
  reasons = Counter(json.loads(line)["reason"] for line in lines)
  return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "none"

"""Documents to verified training data: reads, deals, surveys, writes samples, and joins them to data sets by split.

The steps are `data.synthesis.steps`: functions of one element, run here by processes or by Apache Beam; what takes a
model is `synthesis_by_model`'s. The same call again goes on where it stopped.
"""

import json
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from qwenlong_jax import reporting
from qwenlong_jax.data import documents, loading
from qwenlong_jax.data.selection import Contamination
from qwenlong_jax.data.synthesis import inventory, joining, steps
from qwenlong_jax.data.synthesis.joining import Fate
from qwenlong_jax.data.synthesis.parts import Block, Settings
from qwenlong_jax.files import write_text
from qwenlong_jax.models import tokenizer
from qwenlong_jax.stages import synthesis_by_model as by_model
from qwenlong_jax.stages import synthesis_roles
from qwenlong_jax.types import TASKS, Example

RUNNERS = ("local", "beam")
_LEAST = {
  "train": 0,
  "validation": 0,
  "test": 0,
  "train_share": 1,  # without training documents there is nothing to learn a tokenizer from
  "validation_share": 0,
  "test_share": 0,
  "cluster_documents": 1,
  "vocab_size": tokenizer.LEAST,
  "workers": 0,
}
_LENGTHS = ("length", "does_not_fit")  # of reasons why drafts fail, those of contexts that miss their target
_ROUNDS = 5  # of writing more where some were given up


def run(config: ConfigDict, workdir: Path) -> None:
  """Makes the data sets `workdir/data/{train,validation,test}` of `config.documents`, and says what became of them.

  Raises:
    FileNotFoundError: a folder of documents is not there.
    ValueError: a setting that cannot be used, documents that bear no sample, or others than the workdir is of.
    OSError: a model's endpoint or folder that cannot be used, or a budget that is spent.
  """
  settings = settings_of(config, workdir)
  models = synthesis_roles.models_of(config, workdir)
  tests = Contamination.of(config.synthesis.decontaminate)
  run_all = partial(_by_beam if config.synthesis.runner == "beam" else _by_processes, workers=config.synthesis.workers)
  chunks = steps.chunks(settings)
  if not chunks:
    raise ValueError(f"no files in {', '.join(settings.documents)}; config.documents names folders of documents")
  inventory.check(settings, chunks)
  run_all("reading", steps.read_chunk, settings, chunks)
  steps.gather(settings, chunks)
  counts = json.loads((settings.parts("clusters") / "counts.json").read_text(encoding="utf-8"))
  if not counts["documents"]:
    raise ValueError(f"none of the files in {', '.join(settings.documents)} is a document: {_refused(settings)}")
  megabytes = counts["bytes"] / 1e6
  print(f"{counts['documents']:,} documents, {megabytes:,.1f} MB; left out: {_refused(settings)}", flush=True)
  if not config.tokenizer.path:
    steps.learn_tokenizer(settings)
  clusters = steps.clusters(settings)
  run_all("surveying", steps.survey, settings, clusters)
  made = by_model.write(settings, config, models, run_all) if models else []

  def write(blocks: Sequence[Block]) -> None:
    run_all("writing", steps.write_block, settings, [block for block in blocks if not block.maker])
    if models:
      by_model.revise(settings, config, models, blocks)

  write(made)
  kept = join(settings, written(settings, tests, write, made))
  for line in told(settings, kept):
    print(line, flush=True)
  there = [split for split in kept if (workdir / "data" / split / loading.MANIFEST).exists()]
  if not there:
    told_so = f"{workdir / 'data'} stays empty: not one sample can be kept, for the reasons above"
    raise ValueError(f"{told_so}; give other documents{', or a model that is up to it (config.llm)' if models else ''}")
  found = reporting.survey({split: loading.read_each(workdir / "data" / split) for split in there})
  page = reporting.synthesis_report(workdir, found, sum(len(chunk.files) for chunk in chunks))
  print(f"a page about it: {page}; the data sets' card: {reporting.data_card(workdir, found)}", flush=True)


def settings_of(config: ConfigDict, workdir: Path) -> Settings:
  """What the config says of a synthesis, checked before anything is read."""
  settings, roots = config.synthesis, [path.strip() for path in config.documents.split(",")]
  if not all(roots):
    raise ValueError(f"config.documents={config.documents!r} names an empty folder; remove the comma too many")
  if settings.runner not in RUNNERS:
    raise ValueError(f"synthesis.runner={settings.runner!r} is not one of {', '.join(RUNNERS)}")
  for key, least in _LEAST.items():
    if settings[key] < least:
      raise ValueError(f"synthesis.{key}={settings[key]} must be at least {least}")
  if not 0 < settings.duplicate_threshold <= 1:
    raise ValueError(
      f"synthesis.duplicate_threshold={settings.duplicate_threshold} must be above 0 and at most 1: the share of "
      "5-grams that two texts have in common; 1 keeps all but exact repeats"
    )
  documents.check(settings.languages)
  if not settings.targets or min(settings.targets) < 1000:
    raise ValueError(f"synthesis.targets={tuple(settings.targets)} must be lengths of at least 1,000 tokens")
  return Settings(
    folder=str(workdir),
    documents=tuple(str(Path(root).absolute()) for root in roots),
    seed=config.seed,
    languages=tuple(settings.languages),
    threshold=settings.duplicate_threshold,
    cluster=settings.cluster_documents,
    shares=(("train", settings.train_share), ("validation", settings.validation_share), ("test", settings.test_share)),
    samples=(("train", settings.train), ("validation", settings.validation), ("test", settings.test)),
    targets=tuple(settings.targets),
    tokenizer=str(config.tokenizer.path or workdir / "tokenizer"),
    vocab_size=settings.vocab_size,
    reworded=bool(config.llm.model and config.tables.reword),
    screened=bool(config.llm.model and config.screens.samples),
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
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=end_with_parent) as pool:
      for done in as_completed([pool.submit(step, settings, element) for element in left]):
        done.result()
        bar.update()


def end_with_parent() -> None:
  """Ends this worker when whoever started it is killed: it would wait for work for ever."""
  parent = multiprocessing.parent_process()
  assert parent is not None

  def watch() -> None:
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


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
  write: Callable[[Sequence[Block]], None],
  made: Sequence[Block],
) -> dict[str, list[Fate]]:
  """Writes samples until, with those `made` already, as many can be kept as are wanted, as far as the documents bear
  them; by split what becomes of each sample."""
  read = {block: list(joining.written(settings, block, tests)) for block in made}
  for _ in range(_ROUNDS):
    more = steps.blocks(settings, _missing(settings, joining.fates(settings, read)), list(read))
    if not more:
      break
    write(more)
    read |= {block: list(joining.written(settings, block, tests)) for block in more}
  decided: dict[str, list[Fate]] = {split: [] for split, _ in settings.samples}
  for fate in joining.fates(settings, read):
    decided[fate.block.cluster.split].append(fate)
  return decided


def _missing(settings: Settings, decided: Iterable[Fate]) -> dict[tuple[str, str], int]:
  """How many samples more are wanted of each split and task, where any are."""
  kept = Counter((fate.block.cluster.split, fate.block.task) for fate in decided if fate.what == "kept")
  left = {(split, task): wanted - kept[split, task] for split, wanted in settings.samples for task in TASKS}
  return {key: number for key, number in left.items() if number > 0}


def join(settings: Settings, decided: Mapping[str, Sequence[Fate]]) -> dict[str, dict[str, int]]:
  """The data set of every split out of its parts, if it has a sample; what became of all samples."""
  summary: dict[str, dict[str, int]] = {}
  for split, mine in decided.items():
    if not mine:
      continue
    folder = Path(settings.folder) / "data" / split
    if not (folder / loading.MANIFEST).exists():
      examples = _counted(settings, mine, folder / "counts.json")
      if any(fate.what == "kept" for fate in mine):
        loading.write_shards(folder, examples)
      else:
        folder.mkdir(parents=True, exist_ok=True)
        list(examples)
    summary[split] = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
  return summary


def _counted(settings: Settings, decided: Sequence[Fate], path: Path) -> Iterator[Example]:
  """The examples; behind the last of them it is written what became of all, before the data set is complete."""
  counts: Counter[str] = Counter()
  yield from joining.kept(settings, decided, counts)
  write_text(path, json.dumps(dict(sorted(counts.items())), indent=2))


def told(settings: Settings, counts: dict[str, dict[str, int]]) -> Iterator[str]:
  """A line for each split, and one for each task of which there are fewer samples than wanted."""
  for split, wanted in settings.samples:
    kept = {task: counts.get(split, {}).get(f"kept/{task}", 0) for task in TASKS}
    yield f"{split}: {sum(kept.values()):,} samples in {Path(settings.folder) / 'data' / split}"
    for task, number in kept.items():
      if number < wanted:
        why = _why_fewer(counts.get(split, {}), task)
        yield f"  {task}: {number} of {wanted}; {why} (all reasons: counts.json there)"


def _why_fewer(counts: Mapping[str, int], task: str) -> str:
  """The commonest reason of the drafts and samples of a task that came to nothing, and what may help."""
  reasons: Counter[str] = Counter()
  for key, count in counts.items():
    match key.split("/"):
      case "dropped", found, kind, reason if found == task and kind != "rewording":  # which keeps the sample as it was
        reasons[reason] += count
      case reason, found if found == task and reason not in ("kept", "surplus", "given_up"):
        reasons[reason] += count
  if not reasons:
    return "no documents of this split bear it at such lengths; give more documents or raise synthesis.targets"
  ((reason, most),) = reasons.most_common(1)
  why = f"most failed by {reason} ({most:,} of {reasons.total():,})"
  if reason in _LENGTHS:
    return f"{why}: the split has too few documents for its longest contexts; lower synthesis.targets or give more"
  return f"{why}; give more documents"


def _refused(settings: Settings) -> str:
  lines = (settings.parts("clusters") / "refused.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
  reasons = Counter(json.loads(line)["reason"] for line in lines)
  return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "none"

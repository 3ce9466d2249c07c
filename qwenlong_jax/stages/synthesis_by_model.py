"""What a language model does in a synthesis: it writes samples, and rewords and screens whatever was written.

All of it runs in this process, which keeps many requests under way, whoever runs the steps without a model. A
reply is on disk, in `workdir/replies`, before anything is done with it, and all parts are functions of the replies: the
same call again pays for what is missing and ends in the same bytes.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from qwenlong_jax import reporting
from qwenlong_jax.data import loading
from qwenlong_jax.data.synthesis import evolved, steps, triple_steps
from qwenlong_jax.data.synthesis.generate import Order
from qwenlong_jax.data.synthesis.paraphrase import paraphrase
from qwenlong_jax.data.synthesis.parts import (
  BLOCK,
  Block,
  Cluster,
  Settings,
  as_line,
  read_lines,
  write_lines,
)
from qwenlong_jax.data.synthesis.screens import screen
from qwenlong_jax.data.synthesis.self_evolving import evolve
from qwenlong_jax.data.synthesis.table_questions import pose
from qwenlong_jax.data.verification_by_model import Panel
from qwenlong_jax.files import write_text
from qwenlong_jax.llm import Sampling
from qwenlong_jax.stages import synthesis_of_triples
from qwenlong_jax.stages.synthesis_progress import each
from qwenlong_jax.stages.synthesis_roles import Models
from qwenlong_jax.types import Example

_EVOLVED, _TABLES = "reading_comprehension", "corpus_numeric"
RunAll = Callable[[str, Callable[[Settings, Any], None], Settings, Sequence[Any]], None]


def write(settings: Settings, config: ConfigDict, models: Models, run_all: RunAll) -> list[Block]:
  """The blocks of samples that models write, written, and those of templates that they rest on.

  Each maker plans its blocks and runs through them; `run_all` does so with steps that take no model.
  """
  evolving = list(_evolving(settings, config, models))
  each("evolving", settings, models, evolving, Block.part, partial(_evolve, settings, config, models))
  for number, proposed, passed, rate, kept in reporting.evolution(settings.folder)[1:]:
    print(f"round {number}: {proposed} questions proposed, {passed} pass the rules, solve rate {rate}, {kept} kept")
  tables = list(_tables(settings, config))
  run_all("writing", steps.write_block, settings, tables)
  posing = [replace(block, maker="posed") for block in tables]
  each("posing", settings, models, posing, Block.part, partial(_pose, settings, config, models))
  paths = synthesis_of_triples.blocks(settings, config, models)
  for what, number in reporting.triples(settings.folder)[1:]:
    print(f"triples: {what.lower()}: {number}")
  run_all("following triples", triple_steps.write_block, settings, paths)
  return [*evolving, *tables, *posing, *paths]


def revise(settings: Settings, config: ConfigDict, models: Models, blocks: Sequence[Block]) -> None:
  """Rewords and screens what the blocks hold, whoever wrote it."""
  least = max(BLOCK, config.llm.concurrency)
  if settings.reworded:
    asked = [block for block in blocks if block.task == _TABLES]
    each("rewording", settings, models, asked, Block.reworded, partial(_reword, settings, models), least)
  if settings.screened:
    each("screening", settings, models, blocks, Block.screened, partial(_screen, settings, config, models), least)


def _evolving(settings: Settings, config: ConfigDict, models: Models) -> Iterator[Block]:
  """Blocks that count groups of documents."""
  found = {cluster: len(_groups(settings, config, models, cluster)) for cluster in steps.clusters(settings)}
  return steps.planned(settings, found, _EVOLVED, "evolved", models.course.rounds * models.course.proposals)


def _groups(settings: Settings, config: ConfigDict, models: Models, cluster: Cluster) -> list[list[int]]:
  tokens, size = json.loads(cluster.part(settings).read_text(encoding="utf-8"))["tokens"], config.evolve.documents
  return evolved.groups(tokens, size, models.longest(config.evolve.longest, size), config.evolve.groups, settings.seed)


def _evolve(settings: Settings, config: ConfigDict, models: Models, blocks: Sequence[Block]) -> None:
  """Runs the course over a block's groups and puts what it keeps among distractors."""
  (block,) = blocks
  corpus, length = steps.load(settings, block.cluster), steps.counter(settings.tokenizer)
  chosen = _groups(settings, config, models, block.cluster)[block.first : block.first + block.count]
  found = evolve([[corpus.documents[n] for n in group] for group in chosen], models.trio, models.course, models.prompts)
  lines: list[dict[str, Any]] = []
  numbers = {document.id: number for number, document in enumerate(corpus.documents)}
  before = block.first * models.course.rounds * models.course.proposals
  for number, asked in enumerate(found.examples, before):
    group = [numbers[one["document"]] for one in asked.provenance["documents"]]
    order = Order(block.task, number, settings.seed, settings.targets)
    example, dropped = evolved.place(corpus, asked, group, order, length)
    lines.append(as_line(number, example, dropped))
  for number, one in enumerate(found.rejected, before + len(lines)):
    lines.append(as_line(number, None, [f"{block.task}/{block.maker}/{one.reason}"]))
  rounds = settings.parts("evolved") / block.part(settings).with_suffix(".json").name
  write_text(rounds, json.dumps([asdict(one) for one in found.rounds]))
  write_lines(block.part(settings), lines)


def _tables(settings: Settings, config: ConfigDict) -> Iterator[Block]:
  """Blocks of templates' samples whose contexts are asked about; their own questions count as well."""
  every = steps.clusters(settings)
  surveys = {cluster: json.loads(cluster.part(settings).read_text(encoding="utf-8")) for cluster in every}
  contexts = config.tables.contexts if config.tables.questions else 0
  most = {cluster: contexts for cluster, found in surveys.items() if _TABLES in found["tasks"]}
  return steps.planned(settings, most, _TABLES, brings=1 + config.tables.questions)


def _pose(settings: Settings, config: ConfigDict, models: Models, blocks: Sequence[Block]) -> None:
  """Asks new questions about the contexts of the templates' block beside each."""
  count, roles = config.tables.questions, models.trio
  for block in blocks:
    _, given = _read(replace(block, maker="").part(settings))
    varied = _varied(settings, models)
    found = pose(given, roles.proposer, roles.solver, models.prompts, count, varied, models.course.judging)
    made: list[tuple[Example | None, list[str]]] = [(example, []) for example in found.kept]
    made += [(None, [f"{block.task}/{block.maker}/{one.reason}"]) for one in found.rejected]
    lines = [as_line(number, *one) for number, one in enumerate(made, count * block.first)]
    write_lines(block.part(settings), lines)


def _reword(settings: Settings, models: Models, blocks: Sequence[Block]) -> None:
  """A wording that fails is a draft that was dropped; the sample keeps its own."""
  read = {block: _read(block.part(settings)) for block in blocks}
  given = [example for _, examples in read.values() for example in examples]
  roles, varied = models.trio, _varied(settings, models)
  found = paraphrase(given, roles.proposer, roles.solver, models.prompts, varied, models.course.judging)
  reworded, reasons = iter(found.examples), {one.id: one.reason for one in found.unchanged}
  for block, (lines, _) in read.items():
    for line in lines:
      if line["example"] is not None:
        example = next(reworded)
        line["example"] = asdict(example)
        line["dropped"] += [f"{block.task}/rewording/{reasons[example.id]}"] if example.id in reasons else []
    write_lines(block.reworded(settings), lines)


def _screen(settings: Settings, config: ConfigDict, models: Models, blocks: Sequence[Block]) -> None:
  read = {block: _read(block.worded(settings)) for block in blocks}
  given = [example for _, examples in read.values() for example in examples]
  roles, course = models.trio, models.course
  sampling = _varied(settings, models)
  panel = Panel(roles.solver, roles.verifier, models.prompts, config.screens.samples, sampling, course.judging)
  passed, rejected = screen(given, panel, config.screens.guesses, config.screens.bins, models.room)
  for block, (lines, _) in read.items():
    for line in lines:
      if line["example"] is not None:
        ident = line["example"]["id"]
        line["example"] = asdict(passed[ident]) if ident in passed else None
        line |= {"screened": rejected[ident].reason} if ident in rejected else {}
    write_lines(block.screened(settings), lines)


def _read(part: Path) -> tuple[list[dict[str, Any]], list[Example]]:
  """The lines of a part, and the examples in them."""
  lines = list(read_lines(part))
  return lines, [loading.example_of(line["example"]) for line in lines if line["example"] is not None]


def _varied(settings: Settings, models: Models) -> Sampling:
  return replace(models.course.solving, seed=settings.seed)

"""What a language model does in a synthesis: it writes samples, and screens whatever was written.

All of it runs in this process, whose endpoints keep many requests under way, whoever runs the steps without a model. A
reply is on disk, in `workdir/replies`, before anything is done with it, and all parts are functions of the replies: the
same call again pays for what is missing and ends in the same bytes.
"""

import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from qwenlong_jax import reporting
from qwenlong_jax.data import loading
from qwenlong_jax.data.prompts import Prompts
from qwenlong_jax.data.selection import pass_bins
from qwenlong_jax.data.synthesis import evolved, steps
from qwenlong_jax.data.synthesis.course import Course, Trio, check
from qwenlong_jax.data.synthesis.generate import Order
from qwenlong_jax.data.synthesis.screens import screen
from qwenlong_jax.data.synthesis.self_evolving import evolve
from qwenlong_jax.data.synthesis.steps import Block, Cluster, Settings
from qwenlong_jax.data.verification_by_model import GREEDY, Panel
from qwenlong_jax.llm import ON_THE_WAY, Reply, Request, Usage, wire
from qwenlong_jax.llm.endpoint import Endpoint, EndpointError
from qwenlong_jax.llm.limits import BudgetError

_EVOLVED = "reading_comprehension"


class Sure:
  """A `Completion` that gives all replies or none: a part shall not hang on what went wrong on the way to the model."""

  def __init__(self, endpoint: Endpoint):
    self.endpoint = endpoint

  def complete(self, requests: Sequence[Request]) -> list[Reply]:
    replies = self.endpoint.complete(requests)
    if lost := Counter(reply.failure for reply in replies if reply.failure in ON_THE_WAY):
      settings = self.endpoint.settings
      reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(lost.items()))
      raise EndpointError(
        f"{settings.base_url} failed {lost.total()} of {len(requests)} requests {settings.attempts} times each "
        f"({reasons}) for model {settings.model!r}; see that it is up, or raise llm.timeout or llm.attempts"
      )
    return replies


@dataclass(frozen=True)
class Models:
  """Who plays the three roles, what they are told and to what course; `usage` is theirs together, since ever."""

  trio: Trio
  prompts: Prompts
  course: Course
  usage: Usage


def models_of(config: ConfigDict, workdir: Path) -> Models | None:
  """The models of `config.llm`; None if there is none.

  Raises:
    ValueError: settings that cannot be used.
    OSError: a key that is not there.
  """
  if bool(config.llm.url) != bool(config.llm.model):
    raise ValueError(
      f"llm.url={config.llm.url!r} and llm.model={config.llm.model!r}: give both; or neither, for no model"
    )
  if not config.llm.url:
    return None
  course = _course(config)
  check((), course)
  pass_bins((), config.screens.bins)
  usage = Usage()
  with _way_on(workdir):
    proposer = _engine(config, config.llm, workdir / "replies" / "proposer", usage)
    roles = (("solver", config.llm.solver), ("verifier", config.llm.verifier))
    solver, verifier = (
      _engine(config, role, workdir / "replies" / name, usage) if role.url or role.model else proposer
      for name, role in roles
    )
  return Models(Trio(proposer, solver, verifier), Prompts.load(config.llm.prompts or None), course, usage)


def _engine(config: ConfigDict, settings: ConfigDict, folder: Path, usage: Usage) -> Sure:
  """Whoever has no address of its own is at the first one's, with its key."""
  wired = wire.Settings(
    base_url=settings.url or config.llm.url,
    model=settings.model or config.llm.model,
    cache=folder,
    key_variable=settings.key_variable if settings.url else config.llm.key_variable,
    concurrency=config.llm.concurrency,
    requests_per_minute=config.llm.requests_per_minute or None,
    tokens_per_minute=config.llm.tokens_per_minute or None,
    timeout=config.llm.timeout,
    attempts=config.llm.attempts,
    most_tokens=config.llm.most_tokens or None,
    most_cost=config.llm.most_cost or None,
    price_in=settings.price_in,
    price_out=settings.price_out,
  )
  return Sure(Endpoint(wired, usage, since_ever=True))


def _course(config: ConfigDict) -> Course:
  usual, most = Course(), config.llm.max_tokens
  return replace(
    usual,
    rounds=config.evolve.rounds,
    proposals=config.evolve.proposals,
    samples=config.evolve.samples,
    seed=config.seed,
    proposing=replace(usual.proposing, max_tokens=most),
    solving=replace(usual.solving, max_tokens=most),
    judging=replace(GREEDY, max_tokens=most),
  )


def write(settings: Settings, config: ConfigDict, models: Models) -> list[Block]:
  """The blocks of samples that models write, written. Each maker plans its blocks and runs through them."""
  evolving = list(_evolving(settings, config, models.course))
  _each("evolving", settings, evolving, Block.part, partial(_evolve, settings, config, models), models)
  for number, proposed, passed, rate, kept in reporting.evolution(settings.folder)[1:]:
    print(f"round {number}: {proposed} questions proposed, {passed} pass the rules, solve rate {rate}, {kept} kept")
  return evolving


def screen_all(settings: Settings, config: ConfigDict, models: Models, blocks: Sequence[Block]) -> None:
  """Screens what the blocks hold, whoever wrote it."""
  _each("screening", settings, blocks, Block.screened, partial(_screen, settings, config, models), models)


def _evolving(settings: Settings, config: ConfigDict, course: Course) -> Iterator[Block]:
  """Blocks that count groups of documents: no more questions than samples are wanted, in equal parts from all clusters
  that have groups."""
  every = {cluster: len(_groups(settings, config, cluster)) for cluster in steps.clusters(settings)}
  for split, wanted in settings.samples:
    found = {cluster: count for cluster, count in every.items() if cluster.split == split and count}
    enough = math.ceil(wanted / max(len(found) * course.rounds * course.proposals, 1))
    for cluster, count in found.items():
      least = min(count, enough)
      for first in range(0, least, steps.BLOCK):
        yield Block(cluster, _EVOLVED, first, min(steps.BLOCK, least - first), maker="evolved")


def _groups(settings: Settings, config: ConfigDict, cluster: Cluster) -> list[list[int]]:
  tokens = json.loads(cluster.part(settings).read_text())["tokens"]
  return evolved.groups(
    tokens, config.evolve.documents, config.evolve.longest, config.evolve.groups, settings.seed
  )


def _evolve(settings: Settings, config: ConfigDict, models: Models, block: Block) -> None:
  """Runs the course over a block's groups and puts what it keeps among distractors."""
  corpus, length = steps.load(settings, block.cluster), steps.counter(settings.tokenizer)
  chosen = _groups(settings, config, block.cluster)[block.first : block.first + block.count]
  found = evolve([[corpus.documents[n] for n in group] for group in chosen], models.trio, models.course, models.prompts)
  lines: list[dict[str, Any]] = []
  numbers = {document.id: number for number, document in enumerate(corpus.documents)}
  before = block.first * models.course.rounds * models.course.proposals
  for number, asked in enumerate(found.examples, before):
    group = [numbers[one["document"]] for one in asked.provenance["documents"]]
    order = Order(block.task, number, settings.seed, settings.targets)
    example, dropped = evolved.place(corpus, asked, group, order, length)
    lines.append({"number": number, "example": None if example is None else asdict(example), "dropped": dropped})
  for number, one in enumerate(found.rejected, before + len(lines)):
    lines.append({"number": number, "example": None, "dropped": [f"{block.task}/{block.maker}/{one.reason}"]})
  rounds = settings.parts("evolved") / block.part(settings).with_suffix(".json").name
  steps.write_text(rounds, json.dumps([asdict(one) for one in found.rounds]))
  steps.write_lines(block.part(settings), lines)


def _screen(settings: Settings, config: ConfigDict, models: Models, block: Block) -> None:
  lines = list(steps.read_lines(block.part(settings)))
  examples = [loading.example_of(line["example"]) for line in lines if line["example"] is not None]
  roles, course = models.trio, models.course
  sampling = replace(course.solving, seed=settings.seed)
  panel = Panel(roles.solver, roles.verifier, models.prompts, config.screens.samples, sampling, course.judging)
  passed, rejected = screen(examples, panel, config.screens.guesses, config.screens.bins)
  for line in lines:
    if line["example"] is not None:
      ident = line["example"]["id"]
      line["example"] = asdict(passed[ident]) if ident in passed else None
      line |= {"screened": rejected[ident].reason} if ident in rejected else {}
  steps.write_lines(block.screened(settings), lines)


def _each(
  what: str,
  settings: Settings,
  blocks: Sequence[Block],
  part: Callable[[Block, Settings], Path],
  work: Callable[[Block], None],
  models: Models,
) -> None:
  """Works on the blocks whose parts are not there, with a bar that tells time and cost."""
  left = [block for block in blocks if not part(block, settings).exists()]
  total, to_do = (sum(block.count for block in some) for some in (blocks, left))
  bar = tqdm(total=total, initial=total - to_do, desc=what, dynamic_ncols=True)
  with bar, _telling(bar, models.usage), _way_on(Path(settings.folder)):
    for block in left:
      work(block)
      bar.update(block.count)


@contextmanager
def _telling(bar: tqdm, usage: Usage) -> Iterator[None]:
  """Shows the cost while a block is under way, which may take minutes."""
  done = threading.Event()

  def tell() -> None:
    while not done.wait(1.0):
      bar.set_postfix_str(spent(usage))

  teller = threading.Thread(target=tell, daemon=True)
  teller.start()
  try:
    yield
  finally:
    done.set()
    teller.join()
    bar.set_postfix_str(spent(usage))


def spent(usage: Usage) -> str:
  return f"{usage.calls:,} calls, {usage.tokens_in + usage.tokens_out:,} tokens, cost {usage.cost:.2f}"


@contextmanager
def _way_on(workdir: Path) -> Iterator[None]:
  """Says after what stops a run how it goes on."""
  try:
    yield
  except (BudgetError, EndpointError) as error:
    raise OSError(
      f"{error} (settings: config.llm; the same command goes on, with the replies in {workdir / 'replies'})"
    ) from error

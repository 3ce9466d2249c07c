"""Who plays the roles of a synthesis: models at endpoints, their replies kept in the workdir, one budget for all."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ml_collections import ConfigDict

from qwenlong_jax.data.prompts import Prompts
from qwenlong_jax.data.selection import pass_bins
from qwenlong_jax.data.synthesis.course import Course, Trio, check
from qwenlong_jax.data.verification_by_model import GREEDY
from qwenlong_jax.llm import ON_THE_WAY, Reply, Request, Usage, wire
from qwenlong_jax.llm.endpoint import Endpoint, EndpointError
from qwenlong_jax.llm.limits import BudgetError

_AROUND = 500  # tokens of a prompt around what is to be read


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
  """Who plays the roles, what they are told and to what course; `usage` is theirs together, since ever.

  `room`: the tokens of documents that a prompt may hold; None: no limit is known.
  """

  trio: Trio
  prompts: Prompts
  course: Course
  usage: Usage
  room: int | None = None

  def longest(self, wanted: int, together: int = 1) -> int:
    """Tokens of a document, `wanted` at most, of which a prompt has room for so many together."""
    return wanted if self.room is None else min(wanted, self.room // together)


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
  course, room = _course(config), _room(config)
  check((), course)
  pass_bins((), config.screens.bins)
  usage = Usage()
  with way_on(workdir):
    proposer = _engine(config, config.llm, workdir / "replies" / "proposer", usage)
    roles = (("solver", config.llm.solver), ("verifier", config.llm.verifier))
    solver, verifier = (
      _engine(config, role, workdir / "replies" / name, usage) if role.url or role.model else proposer
      for name, role in roles
    )
  return Models(Trio(proposer, solver, verifier), Prompts.load(config.llm.prompts or None), course, usage, room)


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


def _room(config: ConfigDict) -> int | None:
  window, reply = config.llm.window, config.llm.max_tokens
  if not window:
    return None
  if window <= reply + _AROUND:
    raise ValueError(
      f"llm.window={window} leaves no room for documents beside a reply of llm.max_tokens={reply} and {_AROUND} tokens "
      "of a prompt; lower llm.max_tokens"
    )
  return window - reply - _AROUND


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


@contextmanager
def way_on(workdir: Path) -> Iterator[None]:
  """Says after what stops a run how it goes on."""
  try:
    yield
  except (BudgetError, EndpointError) as error:
    raise OSError(
      f"{error} (settings: config.llm; the same command goes on, with the replies in {workdir / 'replies'})"
    ) from error

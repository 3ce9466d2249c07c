"""Who plays the roles of a synthesis: models at endpoints or in this process, replies in the workdir, one budget."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax.numpy as jnp
from ml_collections import ConfigDict

from qwenlong_jax.data.prompts import Prompts
from qwenlong_jax.data.selection import pass_bins
from qwenlong_jax.data.synthesis.course import Course, Trio, check
from qwenlong_jax.data.verification_by_model import GREEDY
from qwenlong_jax.llm import ON_THE_WAY, Completion, Reply, Request, Usage, wire
from qwenlong_jax.llm.endpoint import Endpoint, EndpointError
from qwenlong_jax.llm.limits import BudgetError
from qwenlong_jax.parallelism.mesh import make_mesh
from qwenlong_jax.rollout import completion, pretrained
from qwenlong_jax.rollout.completion import LocalModel
from qwenlong_jax.rollout.pretrained import Pretrained

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
    OSError: a key, or a file of a model's folder, that is not there.
  """
  if not config.llm.url and not config.llm.model:
    for name in ("solver", "verifier"):
      if config.llm[name].url or config.llm[name].model:
        raise ValueError(f"llm.{name} names a model and llm none; give llm.model, which proposes, too")
    return None
  if not config.llm.model:
    raise ValueError(f"llm.url={config.llm.url!r} and llm.model='': give both, or neither, for no model")
  course = _course(config)
  check((), course)
  pass_bins((), config.screens.bins)
  usage = Usage()
  with way_on(workdir):
    cast = _Cast(config, workdir / "replies", usage)
    proposer = cast.player("", config.llm)
    roles = (("solver", config.llm.solver), ("verifier", config.llm.verifier))
    solver, verifier = (cast.player(name, role) if role.url or role.model else proposer for name, role in roles)
  room = _room(config, (proposer, solver, verifier))
  return Models(Trio(proposer, solver, verifier), Prompts.load(config.llm.prompts or None), course, usage, room)


@dataclass(frozen=True)
class _Cast:
  """Players of roles. Whoever has no address of its own is where the first one is: there, with its key, or here.

  `loaded`: the models of this process by their folders, each once however many roles it plays.
  """

  config: ConfigDict
  replies: Path
  usage: Usage
  loaded: dict[Path, Pretrained] = field(default_factory=dict)

  def player(self, name: str, settings: ConfigDict) -> Completion:
    """The role `name`, or "" for the first one, which proposes."""
    config, folder = self.config, self.replies / (name or "proposer")
    if settings.url and not config.llm.url and not settings.model:
      raise ValueError(f"llm.{name}.url={settings.url!r} and llm.{name}.model='': give the name of the model there")
    if settings.url or config.llm.url:
      return self._endpoint(settings, folder)
    return self._local(f"llm.{name}.model" if name else "llm.model", settings, folder)

  def _endpoint(self, settings: ConfigDict, folder: Path) -> Sure:
    config = self.config
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
    return Sure(Endpoint(wired, self.usage, since_ever=True))

  def _local(self, key: str, settings: ConfigDict, folder: Path) -> LocalModel:
    config = self.config
    model = Path(settings.model).resolve()
    if not (model / "config.json").is_file():
      raise ValueError(
        f"{key}={settings.model!r} is no folder of a Hugging Face Qwen3 (with config.json), which this process could "
        "sample from; give the path of one, or llm.url, the address at which a model of this name is served"
      )
    if model not in self.loaded:
      mesh = make_mesh(config.mesh.data, config.mesh.ring)
      self.loaded[model] = pretrained.load(model, mesh, jnp.dtype(config.model.dtype))
    limits = completion.Settings(
      cache=folder,
      concurrency=config.llm.concurrency,
      window=config.llm.window or None,
      most_tokens=config.llm.most_tokens or None,
      most_cost=config.llm.most_cost or None,
      price_in=settings.price_in,
      price_out=settings.price_out,
    )
    return LocalModel(self.loaded[model], limits, self.usage, since_ever=True)


def _room(config: ConfigDict, players: Sequence[Completion]) -> int | None:
  """Within `llm.window`, and within that of a model in this process, which is known."""
  known = [player.window for player in players if isinstance(player, LocalModel)]
  window, reply = min([*known, *[config.llm.window] * bool(config.llm.window)], default=0), config.llm.max_tokens
  if not window:
    return None
  if window <= reply + _AROUND:
    raise ValueError(
      f"a window of {window} tokens (llm.window={config.llm.window}, or the model's own) leaves no room for documents "
      f"beside a reply of llm.max_tokens={reply} and {_AROUND} tokens of a prompt; lower llm.max_tokens"
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

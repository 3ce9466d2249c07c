"""Completions by a model in this process: the sampler as a `Completion`, as `llm.endpoint` is one over HTTP.

    model = LocalModel(pretrained.load("Qwen3-4B", make_mesh(), jnp.bfloat16), Settings(cache="replies"))
    replies = model.complete([ask("What is a mesh?")])

Samples of the same messages are the G responses to one prompt, which is prefilled once. Prompts of equal slots, G and
sampling are sampled P at a time, and are on disk before the next ones start. So that few programs are compiled, slots
are powers of two, 64 or more, up to the window, and P hangs on G alone: where fewer prompts are left the first of them
is repeated, to whom nothing listens.

What a reply says hangs on its own request: its random key is the digest of all that tells it from other requests.
Numbers are rounded by shape, though: a near tie may end otherwise under another `concurrency`, or where more or fewer
samples of the same messages are wanted at once.

Letters: P prompts, G responses to each, S prompt slots.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qwenlong_jax import llm
from qwenlong_jax.llm import Message, Reply, Request, Usage
from qwenlong_jax.llm.cache import Replies, content_key
from qwenlong_jax.llm.limits import BudgetError, Purse
from qwenlong_jax.rollout.pretrained import Pretrained
from qwenlong_jax.rollout.sampling import Sampling
from qwenlong_jax.types import Prompts

LEAST_SLOTS = 64
_REPLY_TOKENS = 4096  # at most, where a request leaves it to us


@dataclass(frozen=True)
class Settings:
  """`cache` is a folder. `concurrency`: responses decoded at once, one prompt for each device of mesh.data at least.

  `window`: tokens of a prompt and its reply, where that shall be less than the model's. `most_tokens` and `most_cost`
  cap what this object spends, at prices per million tokens.
  """

  cache: Path | str
  concurrency: int = 16
  window: int | None = None
  most_tokens: int | None = None
  most_cost: float | None = None
  price_in: float = 0.0
  price_out: float = 0.0


@dataclass(frozen=True)
class Group:
  """A prompt and the keys of its G requests."""

  ids: np.ndarray
  keys: list[str]


class LocalModel:
  """A `Completion` by a Qwen3 on this process's devices, for one caller at a time. `usage` adds up over the calls.

  `usage` and `since_ever` as of `Endpoint`. What a `Sampling` leaves open is the model's own temperature and top-p, at
  most 4,096 tokens, and seed 0; a request's `schema` is not looked at.
  """

  def __init__(self, model: Pretrained, settings: Settings, usage: Usage | None = None, since_ever: bool = False):
    if settings.concurrency < 1:
      raise ValueError(f"concurrency={settings.concurrency} responses at once must be at least 1")
    self.model, self.settings, self.usage = model, settings, Usage() if usage is None else usage
    self.window = min(model.window, settings.window or model.window)
    limits = settings.most_tokens, settings.most_cost
    self._purse = Purse(self.usage, *limits, settings.price_in, settings.price_out)
    self._replies = Replies(settings.cache)
    if since_ever:
      self._purse.spend(*self._replies.spent())

  def complete(self, requests: Sequence[Request]) -> list[Reply]:
    """The replies to `requests`, in their order; equal requests are sampled once.

    Raises BudgetError, once all that was sampled is kept.
    """
    keys = [content_key(self._body(request), request.sample) for request in requests]
    return self._replies.complete(keys, requests, self.usage, self._fetch)

  def _drawing(self, asked: llm.Sampling) -> Sampling:
    """What is not said filled in, and what does not matter made equal."""
    temperature = self.model.temperature if asked.temperature is None else asked.temperature
    top_p = self.model.top_p if asked.top_p is None else asked.top_p
    text = self.model.tokenizer
    most = asked.max_tokens or _REPLY_TOKENS
    return Sampling(temperature, top_p if temperature else 1.0, most, text.stop_ids, text.pad_id)

  def _body(self, request: Request) -> dict[str, Any]:
    """All that decides about a reply beside the number of the sample."""
    drawing = self._drawing(request.sampling)
    return {
      "model": self.model.identity,
      "messages": [asdict(message) for message in request.messages],
      "temperature": drawing.temperature,
      "top_p": drawing.top_p,
      "max_tokens": drawing.max_tokens,
      "seed": (request.sampling.seed or 0) + request.sample,
    }

  def _fetch(self, missing: dict[str, Request]) -> dict[str, Reply]:
    """Replies to requests that differ, each batch of them kept before the next."""
    alike: dict[tuple[tuple[Message, ...], Sampling], list[str]] = {}
    for key, request in missing.items():
      alike.setdefault((request.messages, self._drawing(request.sampling)), []).append(key)
    replies: dict[str, Reply] = {}
    waiting: dict[tuple[int, int, Sampling], list[Group]] = {}
    most = self.settings.concurrency
    for (messages, sampling), keys in alike.items():
      ids = self._tokens(messages)
      if len(ids) + sampling.max_tokens > self.window:
        replies |= dict.fromkeys(keys, Reply("", failure="too_long", model=self.model.name))
        continue
      for some in (keys[first : first + most] for first in range(0, len(keys), most)):
        waiting.setdefault((prompt_slots(len(ids), self.window), len(some), sampling), []).append(Group(ids, some))
    for (slots, count, sampling), groups in waiting.items():
      while groups:
        batch = self._affordable(groups[: self._rows(count)], sampling.max_tokens)
        sampled = self._sample(batch, slots, sampling)
        self._replies.put_all(sampled)
        tokens_in, tokens_out = np.sum([(reply.tokens_in, reply.tokens_out) for reply in sampled.values()], axis=0)
        self._purse.spend(len(sampled), int(tokens_in), int(tokens_out))
        replies |= sampled
        groups = groups[len(batch) :]
    return replies

  def _tokens(self, messages: Sequence[Message]) -> np.ndarray:
    """Half a surrogate pair, which JSON may hold, is no text."""
    texts = [(message.role, message.content.encode("utf-8", "replace").decode()) for message in messages]
    return self.model.tokenizer.chat(texts)

  def _rows(self, group: int) -> int:
    """P, which divides over mesh.data."""
    rows = max(1, self.settings.concurrency // group)
    return rows + -rows % self.model.engine.mesh.shape["data"]

  def _affordable(self, groups: Sequence[Group], max_tokens: int) -> Sequence[Group]:
    """The first groups, as many as the budget has room for. Raises BudgetError: not even for one."""
    tokens_in = tokens_out = 0
    for number, group in enumerate(groups):
      tokens_in += len(group.ids) * len(group.keys)
      tokens_out += max_tokens * len(group.keys)
      if lack := self._purse.lack(tokens_in, tokens_out):
        if number == 0:
          raise BudgetError(lack)
        return groups[:number]
    return groups

  def _sample(self, groups: Sequence[Group], slots: int, sampling: Sampling) -> dict[str, Reply]:
    """Replies to P groups at most, by one run of the engine."""
    model, count = self.model, len(groups[0].keys)
    rows = [*groups, *[groups[0]] * (self._rows(count) - len(groups))]
    tokens = [np.pad(row.ids, (0, slots - len(row.ids)), constant_values=sampling.pad_id) for row in rows]
    prompts = Prompts(np.stack(tokens), np.array([len(row.ids) for row in rows], np.int32))
    words = np.array([[[int(key[:8], 16), int(key[8:16], 16)] for key in row.keys] for row in rows], np.uint32)
    random = jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")
    try:
      rollout = jax.device_get(model.engine.generate(model.params, prompts, random, group=count, sampling=sampling))
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      raise ValueError(
        f"{len(rows)} prompts of {slots} and {count} x {sampling.max_tokens} response slots each do not fit into the "
        f"devices' memory beside {model.name}; lower llm.concurrency={self.settings.concurrency}, or raise mesh.ring"
      ) from error
    replies: dict[str, Reply] = {}
    for row, group in enumerate(groups):
      for place, key in enumerate(group.keys):
        ids = rollout.tokens[row, place, : rollout.length[row, place]]
        replies[key] = self._reply(ids, len(group.ids), bool(rollout.stopped[row, place]))
    return replies

  def _reply(self, ids: np.ndarray, tokens_in: int, stopped: bool) -> Reply:
    text, thoughts = llm.apart(self.model.tokenizer.decode(ids[: len(ids) - stopped], skip_special=True))
    failure = "length" if not stopped else "" if text else "empty"
    return Reply(text, failure, thoughts, self.model.name, tokens_in, len(ids))


def prompt_slots(length: int, window: int) -> int:
  """A power of two that holds a prompt, or in eights the window where that is less."""
  return min(max(LEAST_SLOTS, 1 << (length - 1).bit_length()), -(-window // 8) * 8)

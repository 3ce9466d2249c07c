"""Completions from an OpenAI-compatible server (vLLM, SGLang, llama.cpp, a hosted API): the I/O around `Completion`.

    endpoint = Endpoint(Settings(base_url="http://localhost:8000/v1", model="Qwen/Qwen3-4B", cache="replies"))
    replies = endpoint.complete([ask("What is a mesh?")])

Each request runs through the same steps: cache, budget, pace, call, retries; a reply is on disk before anything else.
"""

import asyncio
import concurrent.futures
import os
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from qwenlong_jax.llm import Reply, Request, Usage
from qwenlong_jax.llm.cache import Replies, content_key
from qwenlong_jax.llm.limits import Pace, Purse
from qwenlong_jax.llm.wire import Passing, Settings, body, estimate, read, retry_after

try:
  import openai
  import tenacity
except ImportError as error:
  raise ImportError(f"an endpoint needs {error.name}; pip install 'qwenlong_jax[synthesis]'") from error

_PASSING = {408: "timeout", 409: "server_error", 425: "server_error", 429: "rate_limited"}
_REMEDIES = {
  400: "the server takes the request for wrong: see its message; drop the parameter it names (None, or `extra`)",
  401: "put a valid key into the environment variable {key}",
  402: "top up the account; what was paid for is in the cache",
  403: "this key may not use the model: ask for access or take another model",
  404: "check base_url (it mostly ends in /v1) and model",
}


class EndpointError(RuntimeError):
  """The server cannot be used as it is set up, or does not answer at all. Replies so far are in the cache."""


class Endpoint:
  """A `Completion` over HTTP, for one caller at a time. `usage` adds up over the calls.

  Endpoints that are given the same `usage` share a budget. `since_ever`: what the replies in the cache have cost counts
  as spent; otherwise the budget is this object's.
  """

  def __init__(self, settings: Settings, usage: Usage | None = None, since_ever: bool = False):
    self.settings, self.usage = settings, Usage() if usage is None else usage
    self._key = api_key(settings)
    self._replies = Replies(settings.cache)
    self._pace = Pace(settings.requests_per_minute, settings.tokens_per_minute)
    limits = settings.most_tokens, settings.most_cost
    self._purse = Purse(self.usage, *limits, settings.price_in, settings.price_out)
    if since_ever:
      self._purse.spend(*self._replies.spent())
    self._in_vain = 0
    self._stop: Exception | None = None

  def complete(self, requests: Sequence[Request]) -> list[Reply]:
    """The replies to `requests`, in their order; equal requests are asked once.

    Raises EndpointError (the server rejects what it is asked, or is down) and BudgetError, once the calls under way
    have come back and are kept.
    """
    keys = [content_key(body(request, self.settings), request.sample) for request in requests]
    return self._replies.complete(keys, requests, self.usage, lambda missing: _run(self._fetch(missing)))

  async def _fetch(self, missing: Mapping[str, Request]) -> dict[str, Reply]:
    settings = self.settings
    self._stop, self._in_vain = None, 0
    door = asyncio.Semaphore(settings.concurrency)
    async with openai.AsyncOpenAI(
      api_key=self._key, base_url=settings.base_url, max_retries=0, timeout=settings.timeout
    ) as client:
      tasks = [self._one(client, door, key, request) for key, request in missing.items()]
      replies = await asyncio.gather(*tasks, return_exceptions=True)
    # First the reason to stop, which others may have met as well.
    for reply in (self._stop, *replies):
      if isinstance(reply, BaseException):
        raise reply
    return {key: reply for key, reply in zip(missing, replies) if isinstance(reply, Reply)}

  async def _one(self, client: openai.AsyncOpenAI, door: asyncio.Semaphore, key: str, request: Request) -> Reply:
    """One reply, kept on disk unless it failed on the way."""
    async with door:
      if self._stop:
        return Reply("", failure="stopped")
      retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(Passing),
        stop=tenacity.stop_after_attempt(self.settings.attempts),
        wait=self._wait,
        before_sleep=self._count,
        reraise=True,
      )
      try:
        reply: Reply = await retrying(self._attempt, client, request)
        self._in_vain = 0
        if reply.failure != "too_long":
          self._replies.put(key, reply)
        return reply
      except Passing as error:
        return self._failed(error)
      except Exception as error:
        # Whatever it is, a full disk too: nothing more is paid for.
        self._stop = self._stop or error
        raise

  async def _attempt(self, client: openai.AsyncOpenAI, request: Request) -> Reply:
    """One call. Spends, and says so, whatever the reply is worth."""
    tokens_in, tokens_out = estimate(request)
    tokens = tokens_in + tokens_out
    await self._purse.hold(tokens_in, tokens_out)
    try:
      await self._pace.wait(tokens)
      if self._stop:
        raise self._stop
      self.usage.calls += 1
      reply = read(await self._call(client, request), tokens_in)
      self._purse.spend(0, reply.tokens_in, reply.tokens_out)
      self._pace.settle(tokens, reply.tokens_in + reply.tokens_out)
      return reply
    except openai.APIStatusError as error:
      return Reply("", failure=self._judged(error))
    finally:
      self._purse.release(tokens_in, tokens_out)

  async def _call(self, client: openai.AsyncOpenAI, request: Request) -> str:
    """The body of the server's answer. The deadline is ours: that of the client starts anew with every byte."""
    try:
      async with asyncio.timeout(self.settings.timeout):
        raw = await client.chat.completions.with_raw_response.create(**body(request, self.settings))
        return raw.text
    except (TimeoutError, openai.APITimeoutError) as error:
      raise Passing("timeout", f"no answer within {self.settings.timeout} s") from error
    except openai.APIConnectionError as error:
      raise Passing("connection", str(error.__cause__ or error)) from error

  def _judged(self, error: openai.APIStatusError) -> str:
    """The failure of this one request; raises Passing if it may pass, EndpointError if every other will fail too."""
    status, message = error.status_code, self._clean(str(error))
    if error.code == "content_filter":
      return "content_filter"
    if status in (400, 413, 422) and (error.code == "context_length_exceeded" or "context length" in message):
      return "too_long"
    if (status in _PASSING or status >= 500) and error.code != "insufficient_quota":
      pause = retry_after(error.response.headers.get("retry-after", ""), time.time())
      if pause > self.settings.longest_pause:
        raise EndpointError(self._say(f"asks to wait {pause:.0f} s", message, "run again then"))
      if pause:
        self._pace.pause(pause)
      raise Passing(_PASSING.get(status, "server_error"), f"{status}: {message}", pause)
    remedy = _REMEDIES.get(status, "see its message").format(key=self.settings.key_variable or "named by key_variable")
    raise EndpointError(self._say(f"answers {status}", message, remedy))

  def _failed(self, error: Passing) -> Reply:
    self._in_vain += 1
    if self._in_vain >= self.settings.give_up and not self._stop:
      done = f"failed {self._in_vain} requests in a row, {self.settings.attempts} times each ({error.failure})"
      self._stop = EndpointError(self._say(done, self._clean(str(error)), "see that it is up, then run again"))
    return Reply("", failure=error.failure)

  def _wait(self, state: tenacity.RetryCallState) -> float:
    """Drawn at random below a bound that doubles, so that many requests do not come back at once."""
    drawn = tenacity.wait_random_exponential(self.settings.first_wait, self.settings.longest_wait)(state)
    error = state.outcome.exception() if state.outcome else None
    return max(drawn, error.pause) if isinstance(error, Passing) else drawn

  def _count(self, state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, Passing):
      self.usage.retries[error.failure] += 1

  def _say(self, what: str, message: str, remedy: str) -> str:
    return f"{self.settings.base_url} {what} for model {self.settings.model!r}: {message}; {remedy}"

  def _clean(self, message: str) -> str:
    """Servers like to repeat the key that they reject."""
    return message.replace(self._key, "[key]")[:500]


def api_key(settings: Settings) -> str:
  """The key out of the environment; the client wants some text even where the server does not."""
  if not settings.key_variable:
    return "no key"
  key = os.environ.get(settings.key_variable, "")
  if not key:
    raise EndpointError(
      f"the environment variable {settings.key_variable} is not set; put the key for {settings.base_url} there"
    )
  return key


def _run(work: Coroutine[Any, Any, dict[str, Reply]]) -> dict[str, Reply]:
  """Runs to the end here, or in a thread where a loop runs already (a notebook)."""
  try:
    asyncio.get_running_loop()
  except RuntimeError:
    return asyncio.run(work)
  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    return thread.submit(asyncio.run, work).result()

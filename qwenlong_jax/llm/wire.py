"""What goes over the wire: the body of a request, the reply out of the body of an answer."""

import email.utils
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from qwenlong_jax.llm import Reply, Request, apart


@dataclass(frozen=True)
class Settings:
  """Where and how to ask. The key stands in the environment variable `key_variable` ("": the server wants none).

  `cache` is a folder. Replies are told apart by `model`, not by `base_url`: give different servers that use one name
  for different models a folder each. `timeout` bounds one call as a whole, in seconds. After `attempts` calls in vain
  a reply is a failure; after `give_up` such requests in a row the server counts as down. Waits grow from `first_wait`
  to `longest_wait` seconds, drawn at random below that; a Retry-After above `longest_pause` is an error.
  `most_tokens` and `most_cost` cap what this object spends (prices are per million tokens); a call that timed out may
  have been billed without being counted. `extra` is sent along as it is, such as {"top_k": 20}.
  """

  base_url: str
  model: str
  cache: Path | str
  key_variable: str = ""
  concurrency: int = 16
  requests_per_minute: float | None = None
  tokens_per_minute: float | None = None
  timeout: float = 600.0
  attempts: int = 6
  give_up: int = 8
  first_wait: float = 1.0
  longest_wait: float = 60.0
  longest_pause: float = 600.0
  most_tokens: int | None = None
  most_cost: float | None = None
  price_in: float = 0.0
  price_out: float = 0.0
  length_parameter: str = "max_tokens"
  json_schema: bool = False
  extra: Mapping[str, Any] = field(default_factory=dict)


class Passing(Exception):
  """What a retry may cure: the failure's name, and how long the server asks to wait."""

  def __init__(self, failure: str, detail: str, pause: float = 0.0):
    super().__init__(detail)
    self.failure, self.pause = failure, pause


def body(request: Request, settings: Settings) -> dict[str, Any]:
  """What is sent, and by which a reply is found again."""
  sampling = request.sampling
  sent: dict[str, Any] = {
    "model": settings.model,
    "messages": [asdict(message) for message in request.messages],
    "temperature": sampling.temperature,
    "top_p": sampling.top_p,
    settings.length_parameter: sampling.max_tokens,
    "seed": None if sampling.seed is None else sampling.seed + request.sample,
  }
  sent = {name: value for name, value in sent.items() if value is not None}
  if settings.json_schema and request.schema:
    schema = {"name": "reply", "schema": dict(request.schema)}
    sent["response_format"] = {"type": "json_schema", "json_schema": schema}
  return sent | ({"extra_body": dict(settings.extra)} if settings.extra else {})


def estimate(request: Request) -> tuple[int, int]:
  """Tokens in, at four bytes each, and at most out; to be corrected by what the server counts."""
  size = sum(len(message.content.encode("utf-8", "replace")) for message in request.messages)
  return size // 4 + 1, request.sampling.max_tokens or 0


def read(text: str, tokens_in: int) -> Reply:
  """The reply in the body of an answer; `tokens_in` where the server does not count. Raises Passing for garbage."""
  try:
    answer = json.loads(text)
    if answer.get("error"):
      raise Passing("server_error", str(answer["error"])[:200])
    if not answer.get("choices"):
      raise Passing("no_choices", "an answer without choices")
    choice = answer["choices"][0]
    message, reason = choice["message"], choice.get("finish_reason") or ""
    whole, refusal = message.get("content") or "", message.get("refusal") or ""
    content, thoughts = apart(whole)
    counted = answer.get("usage") or {}
    reply = Reply(
      text=content,
      reasoning=message.get("reasoning_content") or thoughts,
      model=str(answer.get("model") or ""),
      tokens_in=int(counted.get("prompt_tokens") or tokens_in),
      tokens_out=int(counted.get("completion_tokens") or len(whole.encode()) // 4),
    )
  except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
    raise Passing("malformed_body", f"{text[:200]!r} ({error})") from error
  failure = reason if reason in ("length", "content_filter") else "refusal" if refusal else ""
  return replace(reply, failure=failure or ("" if reply.text else "empty"), text=reply.text or refusal)


def retry_after(header: str, now: float) -> float:
  """Seconds that a Retry-After header (seconds or a date) asks to wait; 0 where it says nothing readable."""
  try:
    return max(0.0, float(header))
  except ValueError:
    pass
  try:
    return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now)
  except (ValueError, TypeError):
    return 0.0

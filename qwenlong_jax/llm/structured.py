"""JSON out of replies: parsed, checked against a schema, asked for a second time where it is not right."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from qwenlong_jax.llm import Completion, Message, Reply, Request

try:
  import pydantic
except ImportError as error:
  raise ImportError("schemas of replies need pydantic; pip install 'qwenlong_jax[synthesis]'") from error

_REPAIR = (
  "That reply cannot be used: {reason}. Reply once more with the corrected JSON object alone, "
  "without any text before or after it."
)


class Schema(pydantic.BaseModel):
  """What a reply's JSON must look like. Fields that were not asked for are dropped."""

  model_config = pydantic.ConfigDict(extra="ignore", frozen=True)


S = TypeVar("S", bound=pydantic.BaseModel)


@dataclass(frozen=True)
class Parsed(Generic[S]):
  """`value`, or why there is none: `failure` in one word, `detail` in a line; `model` is the one that replied."""

  value: S | None
  failure: str = ""
  detail: str = ""
  model: str = ""


def as_json(reply: Reply, schema: type[S]) -> Parsed[S]:
  """The one object in a reply, bare or in a code fence, whatever words without a brace stand around it.

  Failures: the reply's own; "truncated" (the JSON does not end), "extra_text" (a brace before or behind it: which of
  them counts is chance), "malformed" (no JSON, a name twice, NaN), "schema" (JSON of another shape).
  """
  if reply.failure:
    return Parsed(None, reply.failure, model=reply.model)
  data, failure, detail = _decoded(reply.text.strip())
  if failure:
    return Parsed(None, failure, detail, reply.model)
  try:
    return Parsed(schema.model_validate(data), model=reply.model)
  except pydantic.ValidationError as error:
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(map(str, first["loc"])) or "the whole"
    return Parsed(None, "schema", f"{where}: {first['msg']}", reply.model)


def ask_json(engine: Completion, requests: Sequence[Request], schema: type[S], repair: bool = True) -> list[Parsed[S]]:
  """Objects in the order of the requests; with `repair`, wrong JSON is sent back once, with the reason."""
  requests = [replace(request, schema=schema.model_json_schema()) for request in requests]
  replies = engine.complete(requests)
  parsed = [as_json(reply, schema) for reply in replies]
  wrong = [number for number, reply in enumerate(replies) if parsed[number].failure and not reply.failure]
  if not repair or not wrong:
    return parsed
  again = [_told(requests[number], replies[number], parsed[number]) for number in wrong]
  for number, reply in zip(wrong, engine.complete(again)):
    parsed[number] = as_json(reply, schema)
  return parsed


def _told(request: Request, reply: Reply, parsed: Parsed[S]) -> Request:
  reason = f"{parsed.failure} ({parsed.detail})" if parsed.detail else parsed.failure
  turns = (Message("assistant", reply.text), Message("user", _REPAIR.format(reason=reason)))
  return replace(request, messages=(*request.messages, *turns))


def _decoded(text: str) -> tuple[Any, str, str]:
  decoder = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)
  start = text.find("{")
  if start < 0 or text.startswith("["):
    return None, "malformed", f"it begins with {text[:40]!r}"
  try:
    data, end = decoder.raw_decode(text, start)
  except json.JSONDecodeError as error:
    ended = error.pos >= len(text) or error.msg.startswith("Unterminated string")
    return None, "truncated" if ended else "malformed", str(error)
  except (ValueError, RecursionError) as error:
    return None, "malformed", str(error)
  if "{" in text[end:]:
    return None, "extra_text", f"after the first object stands {text[end:].strip()[:40]!r}"
  return data, "", ""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """Of two values under one name, which one a reader takes is chance."""
  if len(dict(pairs)) != len(pairs):
    raise ValueError("a name stands twice")
  return dict(pairs)


def _no_constant(name: str) -> Any:
  raise ValueError(f"{name} is no JSON")

"""Replies on disk, by the content of their requests: none is paid twice, and none is lost when the process is killed.

One SQLite database (`diskcache`), safe for several processes; each reply is committed before the next step is taken.
An entry carries a digest of itself: one that was damaged is reported and counts as missing.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from absl import logging

from qwenlong_jax.llm import Reply, Request, Usage

try:
  import diskcache
except ImportError as error:
  raise ImportError("replies are cached with diskcache; pip install 'qwenlong_jax[synthesis]'") from error

_KEPT = ("text", "failure", "reasoning", "model", "tokens_in", "tokens_out")


class _Plain(diskcache.Disk):
  """Texts only: diskcache would unpickle, and so run, what somebody else put into the database."""

  def fetch(self, mode: int, filename: str, value: Any, read: bool) -> Any:
    if mode != diskcache.core.MODE_RAW:
      return None
    return super().fetch(mode, filename, value, read)


class Replies:
  """The replies kept in `folder`. `damaged` counts entries that were found unreadable."""

  def __init__(self, folder: Path | str):
    self.folder, self.damaged = Path(folder), 0
    try:
      # As it comes, diskcache drops the oldest entries beyond 1 GB and puts long texts into files of their own.
      self._cache = diskcache.Cache(str(folder), disk=_Plain, eviction_policy="none", disk_min_file_size=2**30)
    except sqlite3.DatabaseError as error:
      raise OSError(
        f"the cache of replies in {folder} cannot be read ({error}); move the folder away to start a new one"
      ) from error

  def complete(
    self,
    keys: Sequence[str],
    requests: Sequence[Request],
    usage: Usage,
    fetch: Callable[[dict[str, Request]], Mapping[str, Reply]],
  ) -> list[Reply]:
    """The replies to `requests`, in their order, of which `fetch` gets what is not kept under `keys`, each once.

    `fetch` keeps what it gets, and counts in `usage` what that takes; the rest is counted here.
    """
    wanted = dict(zip(keys, requests, strict=True))
    known = {key: reply for key in wanted if (reply := self.get(key))}
    missing = {key: request for key, request in wanted.items() if key not in known}
    usage.requests += len(requests)
    usage.cached += len(requests) - len(missing)
    usage.damaged = self.damaged
    if missing:
      known |= fetch(missing)
    replies = [known[key] for key in keys]
    usage.failures.update(reply.failure for reply in replies if reply.failure)
    return replies

  def get(self, key: str) -> Reply | None:
    """The reply kept under `key`, or None, also where what is kept is damaged."""
    try:
      entry = self._cache.get(key)
      if entry is None and key not in self._cache:
        return None
      return unpacked(entry)
    except (ValueError, TypeError, AttributeError, sqlite3.DatabaseError, OSError) as error:
      self.damaged += 1
      logging.warning("%s: the entry %s is damaged (%s); asking for it again", self.folder, key, error)
      return None

  def spent(self) -> tuple[int, int, int]:
    """Of all that is kept: replies, tokens in, tokens out."""
    count, tokens_in, tokens_out = 0, 0, 0
    for key in self._cache:
      if reply := self.get(key):
        count, tokens_in, tokens_out = count + 1, tokens_in + reply.tokens_in, tokens_out + reply.tokens_out
    return count, tokens_in, tokens_out

  def put(self, key: str, reply: Reply) -> None:
    self._cache.set(key, packed(reply))

  def put_all(self, replies: Mapping[str, Reply]) -> None:
    """Keeps all of them or, killed meanwhile, none."""
    with self._cache.transact():
      for key, reply in replies.items():
        self.put(key, reply)


def content_key(body: Mapping[str, Any], sample: int) -> str:
  """What identifies a reply: all that is sent (model, messages, sampling, seed) and the number of the sample."""
  return hashlib.sha256(json.dumps({"body": body, "sample": sample}, sort_keys=True).encode()).hexdigest()


def packed(reply: Reply) -> str:
  kept = json.dumps({name: value for name, value in asdict(reply).items() if name in _KEPT})
  return f"{hashlib.sha256(kept.encode()).hexdigest()}\n{kept}"


def unpacked(entry: str) -> Reply:
  """Raises ValueError where the entry is not what `packed` wrote."""
  digest, _, kept = entry.partition("\n")
  if hashlib.sha256(kept.encode()).hexdigest() != digest:
    raise ValueError("its digest does not match")
  return Reply(**json.loads(kept), cached=True)

"""How fast and how much: requests and tokens per minute, and a budget that is not exceeded.

What waits does so in the event loop of one `Endpoint`; times are those of `time.monotonic`, in seconds.
"""

import asyncio
import time
from dataclasses import dataclass, field

from qwenlong_jax.llm import Usage


class BudgetError(RuntimeError):
  """The budget does not suffice for the next request. What was paid for is in the cache."""


@dataclass
class Pace:
  """Requests and tokens spread evenly over the minute (None: no limit): windows of any server are kept, no bursts."""

  requests: float | None = None
  tokens: float | None = None
  _next_request: float = 0.0
  _next_tokens: float = 0.0
  _paused: float = 0.0

  def start(self, now: float, tokens: int) -> float:
    """Books a request of so many tokens; when it may start."""
    start = max(now, self._next_request, self._next_tokens, self._paused)
    if self.requests:
      self._next_request = start + 60 / self.requests
    if self.tokens:
      self._next_tokens = start + 60 * tokens / self.tokens
    return start

  def settle(self, booked: int, used: int) -> None:
    """Corrects the books once it is known how many tokens a request really took."""
    if self.tokens:
      self._next_tokens += 60 * (used - booked) / self.tokens

  def pause(self, seconds: float) -> None:
    """A server that asks one request to wait means all of them."""
    self._paused = max(self._paused, time.monotonic() + seconds)

  async def wait(self, tokens: int) -> None:
    start = self.start(time.monotonic(), tokens)
    while (seconds := max(start, self._paused) - time.monotonic()) > 0:
      await asyncio.sleep(seconds)


@dataclass
class Purse:
  """A cap on tokens, on cost (at prices per million tokens), or on both; counts in `usage` what is spent.

  What requests under way may take is held back, by estimate.
  """

  usage: Usage
  most_tokens: int | None = None
  most_cost: float | None = None
  price_in: float = 0.0
  price_out: float = 0.0
  _held_tokens: int = 0
  _held_cost: float = 0.0
  _released: asyncio.Event = field(default_factory=asyncio.Event)

  def spend(self, calls: int, tokens_in: int, tokens_out: int) -> None:
    self.usage.calls += calls
    self.usage.tokens_in += tokens_in
    self.usage.tokens_out += tokens_out
    self.usage.cost += self._cost(tokens_in, tokens_out)

  async def hold(self, tokens_in: int, tokens_out: int) -> None:
    """Waits until a request of this estimate fits beside those under way; BudgetError if it never will."""
    while lack := self.lack(tokens_in, tokens_out):
      if not self._held_tokens:
        raise BudgetError(lack)
      await self._released.wait()
    self._held_tokens += tokens_in + tokens_out
    self._held_cost += self._cost(tokens_in, tokens_out)

  def release(self, tokens_in: int, tokens_out: int) -> None:
    self._held_tokens -= tokens_in + tokens_out
    self._held_cost -= self._cost(tokens_in, tokens_out)
    self._released.set()
    self._released = asyncio.Event()

  def lack(self, tokens_in: int, tokens_out: int) -> str:
    """Why so many tokens more are too many, and what to do; "" if they are not."""
    tokens, cost = tokens_in + tokens_out, self._cost(tokens_in, tokens_out)
    spent = self.usage.tokens_in + self.usage.tokens_out
    bill = f"spent {spent} tokens (cost {self.usage.cost:.4f}) in {self.usage.calls} calls"
    rest = "all replies paid for are in the cache, and a rerun goes on from there"
    if self.most_tokens is not None and spent + self._held_tokens + tokens > self.most_tokens:
      return f"{bill}; the next request may take {tokens} more: raise most_tokens={self.most_tokens}; {rest}"
    if self.most_cost is not None and self.usage.cost + self._held_cost + cost > self.most_cost:
      return f"{bill}; the next request may cost {cost:.4f} more: raise most_cost={self.most_cost}; {rest}"
    return ""

  def _cost(self, tokens_in: int, tokens_out: int) -> float:
    return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

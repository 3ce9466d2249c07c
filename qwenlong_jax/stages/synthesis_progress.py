"""Work on parts that takes a model: what is there is not done again; a bar tells time and cost, past and to come."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

from tqdm import tqdm

from qwenlong_jax.data.synthesis.parts import Settings
from qwenlong_jax.llm import Usage
from qwenlong_jax.stages.synthesis_roles import Models, way_on


class Counted(Protocol):
  """What a part is made of: so many documents or samples."""

  @property
  def count(self) -> int: ...


Item = TypeVar("Item", bound=Counted)


def each(
  what: str,
  settings: Settings,
  models: Models,
  items: Sequence[Item],
  part: Callable[[Item, Settings], Path],
  work: Callable[[Sequence[Item]], None],
  least: int = 1,
) -> None:
  """Works on the items whose parts are not there, on those at once that together count `least`.

  Which ones are together hangs on what is there already: with more than one, `work` must not mix them.
  """
  left = [item for item in items if not part(item, settings).exists()]
  total, to_do = (sum(item.count for item in some) for some in (items, left))
  bar = tqdm(total=total, initial=total - to_do, desc=what, dynamic_ncols=True)
  with bar, _telling(bar, models.usage), way_on(Path(settings.folder)):
    for some in together(left, least):
      work(some)
      bar.update(sum(item.count for item in some))


def together(items: Sequence[Item], least: int) -> Iterator[list[Item]]:
  some: list[Item] = []
  for item in items:
    some.append(item)
    if sum(one.count for one in some) >= least:
      yield some
      some = []
  if some:
    yield some


@contextmanager
def _telling(bar: tqdm, usage: Usage) -> Iterator[None]:
  """Shows the cost while a block is under way, which may take minutes."""
  done, before = threading.Event(), replace(usage)

  def show() -> None:
    bar.set_postfix_str(spent(usage) + to_come(usage, before, bar.n - bar.initial, bar.total - bar.n))

  def tell() -> None:
    while not done.wait(1.0):
      show()

  teller = threading.Thread(target=tell, daemon=True)
  teller.start()
  try:
    yield
  finally:
    done.set()
    teller.join()
    show()


def spent(usage: Usage) -> str:
  return f"{usage.calls:,} calls, {_tokens(usage):,} tokens, cost {usage.cost:.2f}"


def to_come(usage: Usage, before: Usage, done: int, left: int) -> str:
  """What the `left` will take if they are like the `done`, for which was paid what `before` had not; "" if unknown."""
  if not done or not left:
    return ""
  tokens = (_tokens(usage) - _tokens(before)) * left / done
  cost = (usage.cost - before.cost) * left / done
  return f"; to come: {tokens:,.0f} tokens, cost {cost:.2f}"


def _tokens(usage: Usage) -> int:
  return usage.tokens_in + usage.tokens_out

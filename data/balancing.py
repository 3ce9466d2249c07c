"""The order in which batches take their rows from the task types: pure functions of (step, host).

Letters: B rows in a global batch, H hosts, N tasks, b = B // H rows on a host.

Row j of step s belongs to task (s*B + j) mod N: every batch holds floor(B/N) or ceil(B/N) rows of each task, the
remainder rotates over the tasks, and any N consecutive batches hold exactly B rows of each (recipe, section 2).
Host h takes block (h + s) mod H of the rows. Were the blocks fixed, a batch divisible by N would give a host the same
tasks in every step, and its slice of the others would never be read.
"""

from functools import cached_property

import numpy as np


def tasks_of_batch(step: int, batch_size: int, tasks: int) -> np.ndarray:
  """int[B]: the task of each row of the global batch."""
  return (step * batch_size + np.arange(batch_size)) % tasks


def rows_of_host(step: int, batch_size: int, host: int, hosts: int) -> np.ndarray:
  """int[B // H]: the rows of the global batch that belong to this host."""
  local = local_batch(batch_size, hosts)
  return (host + step) % hosts * local + np.arange(local)


def local_batch(batch_size: int, hosts: int) -> int:
  """Rows per host; an error if the batch cannot be cut evenly."""
  if batch_size < 1 or hosts < 1 or batch_size % hosts:
    lower, upper = max(hosts, batch_size // max(hosts, 1) * hosts), (batch_size // max(hosts, 1) + 1) * hosts
    raise ValueError(
      f"{batch_size=} must be a positive multiple of {hosts=}, equal rows on each; use {lower} or {upper}"
    )
  return batch_size // hosts


class Rotation:
  """Which task a host's n-th row belongs to, and how many rows of that task the host took before.

  The order repeats after N*H steps; one such period is tabulated.
  """

  def __init__(self, batch_size: int, tasks: int, host: int = 0, hosts: int = 1):
    self.batch_size, self.tasks, self.host, self.hosts = batch_size, tasks, host, hosts
    self.local = local_batch(batch_size, hosts)
    if not 0 <= host < hosts:
      raise ValueError(f"{host=} must be one of 0..{hosts - 1}; hosts are counted from 0")

  @cached_property
  def _period(self) -> np.ndarray:
    """int[N*H*b]: the task of each row of one period."""
    return np.concatenate(
      [
        tasks_of_batch(step, self.batch_size, self.tasks)[rows_of_host(step, self.batch_size, self.host, self.hosts)]
        for step in range(self.tasks * self.hosts)
      ]
    )

  @cached_property
  def _before(self) -> np.ndarray:
    """int[N*H*b]: how many earlier rows of the period are of the same task."""
    same = self._period[:, None] == np.arange(self.tasks)
    return (np.cumsum(same, axis=0) - 1)[same]

  @cached_property
  def _each(self) -> np.ndarray:
    """int[N]: rows of each task in one period."""
    return np.bincount(self._period, minlength=self.tasks)

  def __getitem__(self, row: int) -> tuple[int, int]:
    """(task, how many rows of this task this host took before) of the host's row, counted from the first step."""
    periods, place = divmod(row, len(self._period))
    task = int(self._period[place])
    return task, periods * int(self._each[task]) + int(self._before[place])

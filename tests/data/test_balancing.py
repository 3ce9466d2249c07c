import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_jax.data import balancing

TASKS = 5
steps = st.integers(0, 10**6)
batches = st.tuples(st.integers(1, 12), st.integers(1, 6)).map(lambda pair: (pair[0] * pair[1], pair[1]))


@given(steps, st.integers(1, 200))
def test_a_batch_holds_as_many_of_each_task_as_can_be(step, batch_size):
  counts = np.bincount(balancing.tasks_of_batch(step, batch_size, TASKS), minlength=TASKS)
  assert counts.max() - counts.min() <= 1


@given(steps, st.integers(1, 200))
def test_any_five_batches_in_a_row_hold_equal_numbers(step, batch_size):
  rows = np.concatenate([balancing.tasks_of_batch(step + k, batch_size, TASKS) for k in range(TASKS)])
  assert np.bincount(rows, minlength=TASKS).tolist() == [batch_size] * TASKS


@given(steps, batches)
def test_the_hosts_share_a_batch_without_overlap(step, batch):
  batch_size, hosts = batch
  rows = np.concatenate([balancing.rows_of_host(step, batch_size, host, hosts) for host in range(hosts)])
  assert sorted(rows) == list(range(batch_size))


@given(batches, st.integers(0, 10**4))
def test_hosts_together_take_equal_numbers_over_five_batches(batch, first):
  batch_size, hosts = batch
  local = batch_size // hosts
  counts = np.zeros(TASKS, int)
  for host in range(hosts):
    rotation = balancing.Rotation(batch_size, TASKS, host, hosts)
    for row in range(first * local, (first + TASKS) * local):
      counts[rotation[row][0]] += 1
  assert counts.tolist() == [batch_size] * TASKS


@given(batches, st.data())
def test_every_host_reads_every_task_equally_in_the_long_run(batch, data):
  batch_size, hosts = batch
  host = data.draw(st.integers(0, hosts - 1))
  rotation = balancing.Rotation(batch_size, TASKS, host, hosts)
  period = TASKS * hosts * (batch_size // hosts)
  counts = np.bincount([rotation[row][0] for row in range(period)], minlength=TASKS)
  assert counts.tolist() == [period // TASKS] * TASKS


@given(batches, st.data())
def test_rotation_counts_the_rows_of_a_task_one_by_one(batch, data):
  batch_size, hosts = batch
  host = data.draw(st.integers(0, hosts - 1))
  rotation = balancing.Rotation(batch_size, TASKS, host, hosts)
  taken = [0] * TASKS
  for row in range(3 * TASKS * batch_size):
    step, place = divmod(row, batch_size // hosts)
    global_row = balancing.rows_of_host(step, batch_size, host, hosts)[place]
    task = (step * batch_size + global_row) % TASKS
    assert rotation[row] == (task, taken[task])
    taken[task] += 1


def test_the_remainder_of_128_rotates():
  counts = [np.bincount(balancing.tasks_of_batch(step, 128, TASKS), minlength=TASKS).tolist() for step in range(3)]
  assert counts == [[26, 26, 26, 25, 25], [26, 25, 25, 26, 26], [25, 26, 26, 26, 25]]


def test_a_batch_that_hosts_cannot_share_names_both_numbers_and_a_remedy():
  with pytest.raises(ValueError, match=r"batch_size=10 must be a positive multiple of hosts=4.*use 8 or 12"):
    balancing.Rotation(10, TASKS, 0, 4)


def test_a_host_outside_the_count_is_named():
  with pytest.raises(ValueError, match=r"host=2 must be one of 0\.\.1"):
    balancing.Rotation(10, TASKS, 2, 2)

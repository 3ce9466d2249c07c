import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_jax.data import balancing

TASKS = 5
steps = st.integers(0, 10**6)


def tasks_of_batch(step, batch_size):
  return [balancing.place(step * batch_size + row, TASKS)[0] for row in range(batch_size)]


@given(steps, st.integers(1, 200))
def test_a_batch_holds_as_many_of_each_task_as_can_be(step, batch_size):
  counts = np.bincount(tasks_of_batch(step, batch_size), minlength=TASKS)
  assert counts.max() - counts.min() <= 1


@given(steps, st.integers(1, 200))
def test_any_five_batches_in_a_row_hold_equal_numbers(step, batch_size):
  rows = np.concatenate([tasks_of_batch(step + k, batch_size) for k in range(TASKS)])
  assert np.bincount(rows, minlength=TASKS).tolist() == [batch_size] * TASKS


@given(st.integers(1, 40))
def test_rows_of_a_task_are_counted_one_by_one(batch_size):
  taken = [0] * TASKS
  for row in range(3 * TASKS * batch_size):
    task, before = balancing.place(row, TASKS)
    assert (task, before) == (row % TASKS, taken[task])
    taken[task] += 1


def test_the_remainder_of_128_rotates():
  counts = [np.bincount(tasks_of_batch(step, 128), minlength=TASKS).tolist() for step in range(3)]
  assert counts == [[26, 26, 26, 25, 25], [26, 25, 25, 26, 26], [25, 26, 26, 26, 25]]

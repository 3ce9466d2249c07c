import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qwenlong_jax.data import balancing

TASKS = 5
steps = st.integers(0, 10**6)


@given(steps, st.integers(1, 200))
def test_a_batch_holds_as_many_of_each_task_as_can_be(step, batch_size):
  counts = np.bincount(balancing.tasks_of_batch(step, batch_size, TASKS), minlength=TASKS)
  assert counts.max() - counts.min() <= 1


@given(steps, st.integers(1, 200))
def test_any_five_batches_in_a_row_hold_equal_numbers(step, batch_size):
  rows = np.concatenate([balancing.tasks_of_batch(step + k, batch_size, TASKS) for k in range(TASKS)])
  assert np.bincount(rows, minlength=TASKS).tolist() == [batch_size] * TASKS


@given(st.integers(1, 40))
def test_rows_of_a_task_are_counted_one_by_one(batch_size):
  taken = [0] * TASKS
  for row in range(3 * TASKS * batch_size):
    step, j = divmod(row, batch_size)
    task = int(balancing.tasks_of_batch(step, batch_size, TASKS)[j])
    assert balancing.place(row, TASKS) == (task, taken[task])
    taken[task] += 1


def test_the_remainder_of_128_rotates():
  counts = [np.bincount(balancing.tasks_of_batch(step, 128, TASKS), minlength=TASKS).tolist() for step in range(3)]
  assert counts == [[26, 26, 26, 25, 25], [26, 25, 25, 26, 26], [25, 26, 26, 26, 25]]

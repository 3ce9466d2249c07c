"""The order in which batches take their rows from the task types: pure functions of the step.

Letters: B rows in a batch (of all hosts), N tasks.

Row j of step s belongs to task (s*B + j) mod N: every batch holds floor(B/N) or ceil(B/N) rows of each task, the
remainder rotates over the tasks, and any N consecutive batches hold exactly B rows of each (recipe, section 2).
"""


def place(row: int, tasks: int) -> tuple[int, int]:
  """(task, how many rows of this task came before) of a row, counted from the first row of step 0."""
  before, task = divmod(row, tasks)
  return task, before

"""What each process does by itself; together they run in tests/stages/test_processes.py."""

import jax
import numpy as np
import pytest

from qwenlong_jax.parallelism import hosts
from qwenlong_jax.parallelism.mesh import make_mesh


def test_alone_a_process_holds_all_rows_and_gets_back_what_it_gives():
  mesh = make_mesh(4, 2)
  assert hosts.rows(mesh, 8).tolist() == list(range(8))
  tree = {"a": np.arange(24, dtype=np.int32).reshape(8, 3), "b": np.arange(8) > 3}
  placed = hosts.put(tree, mesh)
  assert placed["a"].addressable_shards[0].data.shape == (2, 3)
  back = hosts.fetch(placed, mesh)
  assert all(np.array_equal(back[name], tree[name]) for name in tree)
  assert hosts.gather(tree, mesh) is tree


def test_rows_that_several_processes_hold_are_gathered_once_and_in_order(monkeypatch):
  """Four processes; two rings go through two of them each, and hold rows that don't follow each other."""
  mesh, whole = make_mesh(4, 2), np.random.default_rng(0).normal(size=(8, 2))  # float64, which JAX would round
  words = np.array([f"row {'x' * row}" for row in range(8)])
  held = [[0, 1, 4, 5], [2, 3, 6, 7], [0, 1, 4, 5], [2, 3, 6, 7]]
  monkeypatch.setattr(jax, "process_count", lambda: 4)
  monkeypatch.setattr(hosts, "exchange", lambda value: [(rows, [whole[rows], words[rows]]) for rows in held])
  numbers, names = hosts.gather((whole, words), mesh)
  np.testing.assert_array_equal(numbers, whole)
  assert names.tolist() == words.tolist()


def test_a_process_without_a_device_in_the_mesh_is_named(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  message = r"mesh.data=2 times mesh.ring=2 takes 4 of the 8 devices of 2 processes and none of process 1's; set mesh"
  with pytest.raises(ValueError, match=message):
    hosts.check(make_mesh(2, 2))


def test_rows_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match=r"6 rows do not divide over mesh\.data=4"):
    hosts.rows(make_mesh(4), 6)


@pytest.mark.parametrize("sizes", [[10, 5000], [1024, 1025]])
def test_what_is_exchanged_may_be_of_any_length(monkeypatch, sizes):
  """Two processes, of which this is the second."""
  values = [b"a" * size for size in sizes]
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  lengths = [len(hosts.pickle.dumps(value)) for value in values]

  def allgather(x):
    if x.ndim == 0:
      return np.array(lengths)
    first = np.frombuffer(hosts.pickle.dumps(values[0]), np.uint8)
    return np.stack([np.pad(first, (0, x.size - first.size)), x])

  monkeypatch.setattr(hosts.multihost_utils, "process_allgather", allgather)
  assert hosts.exchange(values[1]) == values

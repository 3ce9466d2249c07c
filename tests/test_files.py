"""What a reader finds of a file while it is written, and after the writer failed."""

import numpy as np
import pytest

from qwenlong_jax.files import publish, write_text


def test_a_reader_meets_the_old_file_until_the_new_one_is_whole(tmp_path):
  path = tmp_path / "new" / "a.txt"
  assert write_text(path, "old ä\n") == path
  with publish(path) as partial:
    partial.write_text("new")
    assert path.read_text(encoding="utf-8") == "old ä\n"
  assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]


def test_an_error_leaves_the_old_file_and_the_next_writing_takes_no_notice_of_it(tmp_path):
  path = tmp_path / "a.txt"
  write_text(path, "old")
  with pytest.raises(OSError, match="full"), publish(path) as partial:
    partial.write_text("a half")
    raise OSError("full")
  assert path.read_text() == "old"
  write_text(path, "new")
  assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_the_suffix_stays_for_writers_that_look_at_it(tmp_path):
  with publish(tmp_path / "a.npz") as partial:
    np.savez(partial, x=np.arange(3))
  with np.load(tmp_path / "a.npz") as arrays:
    assert arrays["x"].tolist() == [0, 1, 2]

"""Ranking takes no device."""

import os
import subprocess
import sys

from qwenlong_jax.data.ranking import BM25

CODE = """
{first}
from qwenlong_jax.data.ranking import BM25
import qwenlong_jax.stages.synthesize
import jax

ranker = BM25()
ranker.index([["a", "b"], ["b", "c"]], show_progress=False)
assert ranker.get_scores(["c"]).argmax() == 1
assert jax.__version__
"""


def test_a_synthesis_asks_jax_for_no_device():
  for first in ("", "import jax"):
    done = subprocess.run(
      [sys.executable, "-c", CODE.format(first=first)],
      env=os.environ | {"JAX_PLATFORMS": "nowhere"},
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr


def test_an_index_is_not_told_about(caplog):
  index = BM25()
  index.index([["a", "b"], ["c"]], show_progress=False)
  assert not caplog.records

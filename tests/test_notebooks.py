"""Every notebook runs from its first cell to its last, on a CPU, and is kept without outputs."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted(Path(__file__).parents[1].glob("notebooks/*.ipynb"))


def test_there_is_one():
  assert "kernels.ipynb" in [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_runs(path):
  notebook = nbformat.read(path, as_version=4)
  assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
  # So that plots go into the notebook.
  environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
  environment["XLA_FLAGS"] = os.environ["CPU_XLA_FLAGS"]
  NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute(env=environment)
  plots = [out for cell in notebook.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
  assert plots

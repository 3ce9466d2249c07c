"""Programs of experiments/ as modules, each without the flags of the others."""

import importlib.util
from pathlib import Path

import pytest
from absl import flags

FOLDER = Path(__file__).resolve().parents[2] / "experiments"


@pytest.fixture(scope="module")
def load_program():
  """Loads a program by its name. Its flags are taken back after the module: two programs may name theirs alike."""
  before = set(flags.FLAGS)

  def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

  yield load
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)

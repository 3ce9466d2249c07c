"""What was compiled once is there at the next start, and trouble with the cache is no trouble for the run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[2] / "experiments/run.py"

# Stands in for the stages: compiles one program and writes what it gives, and whether it was found in the cache.
RECIPE = """
import jax, jax.numpy as jnp

def run(config, workdir):
  events = []
  jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
  value = jax.jit(lambda x: jnp.linalg.qr(x)[1].sum())(jnp.eye(5) + 1)
  found = "/jax/compilation_cache/cache_hits" in events
  (workdir / "seen.txt").write_text(f"{float(value)} {'found' if found else 'compiled'}")
"""


@pytest.fixture
def folder(tmp_path):
  stages = tmp_path / "stub/qwenlong_jax/stages"
  stages.mkdir(parents=True)
  (stages.parent / "__init__.py").touch()
  (stages / "__init__.py").touch()
  (stages / "recipe.py").write_text(RECIPE)
  (stages / "sweep.py").touch()
  config = "from ml_collections import ConfigDict\n\ndef get_config():\n  return ConfigDict({'variants': ()})\n"
  (tmp_path / "mine.py").write_text(config)
  return tmp_path


def run(folder, *arguments, **environment):
  """(what the run computed, whether it was "found" or "compiled", stderr)."""
  inherited = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k and "PERSISTENT_CACHE" not in k}
  added = {"PYTHONPATH": str(folder / "stub"), "HOME": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  done = subprocess.run(
    [sys.executable, str(RUN), "--config=mine.py", "--workdir=w", *arguments],
    cwd=folder,
    env=inherited | added | environment,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  return (*(folder / "w/seen.txt").read_text().split(), done.stderr)


def test_the_second_start_finds_what_the_first_compiled_and_a_damaged_entry_is_compiled_again(folder):
  value, how, _ = run(folder)
  assert how == "compiled"
  entries = list((folder / ".cache/qwenlong_jax/xla").glob("*-cache"))
  assert entries
  run(folder, "--workdir=other")
  assert (folder / "other/seen.txt").read_text() == f"{value} found"  # the cache is the machine's, not the workdir's
  for entry in entries:
    entry.write_bytes(entry.read_bytes()[:-20])
  again, how, said = run(folder)
  assert (again, how) == (value, "compiled")
  assert "Error reading persistent compilation cache entry" in said


def test_the_environment_and_the_flag_say_where_it_is_or_that_there_is_none(folder):
  run(folder, "--compilation_cache=")
  assert not (folder / ".cache").exists()
  run(folder, JAX_COMPILATION_CACHE_DIR=str(folder / "theirs"))
  assert list((folder / "theirs").glob("*-cache")) and not (folder / ".cache").exists()


def test_a_cache_that_cannot_be_written_is_said_and_the_run_goes_on(folder):
  (folder / "file").touch()
  _, how, said = run(folder, "--compilation_cache=file/below")
  assert how == "compiled"
  assert said.startswith("compiled programs are not kept: ") and "give another --compilation_cache" in said

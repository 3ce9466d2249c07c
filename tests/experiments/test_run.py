import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[2] / "experiments/run.py"

CONFIG = """
from ml_collections import ConfigDict

def get_config(size="small"):
  return ConfigDict({
    "seed": 0,
    "size": size,
    "optimizer": {"learning_rate": 2e-6, "betas": (0.9, 0.95)},
    "checkpoint": {"keep": 2, "allow_previous": False},
    "llm": {"model": "m", "most_cost": 1.0},
    "variants": (),
  })
"""

# Stands in for the stages: does what the seed says.
RECIPE = """
def run(config, workdir):
  (workdir / "seen.txt").write_text(f"{config.seed} {config.is_locked}")
  if config.seed == 1:
    raise ValueError("batch 7 must divide by 5")
  if config.seed == 2:
    raise AssertionError("a mistake in the program")
  if config.seed == 3:
    raise KeyboardInterrupt
  if config.seed == 4:
    raise FloatingPointError("the gradient was NaN")
"""


@pytest.fixture
def folder(tmp_path):
  """A folder that is not the checkout, with a config of its own and stages that do nothing."""
  stages = tmp_path / "stub/qwenlong_jax/stages"
  stages.mkdir(parents=True)
  (stages.parent / "__init__.py").touch()
  (stages / "__init__.py").touch()
  (stages / "recipe.py").write_text(RECIPE)
  (stages / "sweep.py").write_text("def run(config, workdir):\n  (workdir / 'compared.txt').touch()\n")
  (tmp_path / "mine.py").write_text(CONFIG)
  return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
  environment = {**os.environ, "PYTHONPATH": str(folder / "stub")}
  command = [sys.executable, str(RUN), *arguments]
  return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def refused(folder: Path, *arguments: str) -> str:
  """The one line that is printed when a command is refused."""
  result = run(folder, *arguments)
  assert (result.returncode, result.stdout) == (1, "")
  lines = result.stderr.splitlines()
  assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
  return lines[0]


def test_overrides_and_the_files_argument_reach_the_config(folder):
  overrides = ["--config.optimizer.learning_rate=1e-4", "--config.seed", "5"]
  result = run(folder, "--config=mine.py:large", *overrides, "--print_config")
  assert json.loads(result.stdout) == {
    "seed": 5,
    "size": "large",
    "optimizer": {"learning_rate": 1e-4, "betas": [0.9, 0.95]},
    "checkpoint": {"keep": 2, "allow_previous": False},
    "llm": {"model": "m", "most_cost": 1.0},
    "variants": [],
  }
  assert not (folder / "runs").exists()


def test_a_config_beside_run_py_is_found_from_any_folder(folder):
  experiments = [path.name for path in RUN.parent.glob("*.py") if "def get_config" in path.read_text()]
  assert "tiny.py" in experiments
  for name in experiments:
    result = run(folder, f"--config={name}", "--print_config")
    assert result.returncode == 0, result.stderr
    assert isinstance(json.loads(result.stdout), dict)


@pytest.mark.parametrize(
  ("key", "hint"),
  [
    ("optimizer.learning_rat=1", "did you mean config.optimizer.learning_rate?"),
    ("optimzer.learning_rate=1", "did you mean config.optimizer.learning_rate?"),
    ("optimzer=1", "did you mean config.optimizer?"),
    ("learning_rate=1", "did you mean config.optimizer.learning_rate?"),
    ("zzz=1", "config has checkpoint, llm, optimizer, seed, size, variants"),
  ],
)
def test_a_misspelt_key_is_refused_with_the_nearest(folder, key, hint):
  assert refused(folder, "--config=mine.py", f"--config.{key}") == f"error: unknown key config.{key[:-2]}; {hint}"


def test_other_mistakes_on_the_command_line_are_refused_in_one_line(folder):
  assert f"no config file min.py in {folder} or {RUN.parent}" in refused(folder, "--config=min.py")
  assert "say for example --config=tiny.py" in refused(folder)
  assert "Did you mean: workdir" in refused(folder, "--config=mine.py", "--wrkdir=x")
  assert "--config.seed=many" in refused(folder, "--config=mine.py", "--config.seed=many")
  assert "unexpected argument 'stray'" in refused(folder, "--config=mine.py", "stray")


def test_the_stages_get_a_locked_config_and_the_same_command_goes_on(folder):
  first = run(folder, "--config=mine.py:large")
  workdir = folder / "runs/mine-large"
  assert (first.returncode, first.stdout) == (0, f"starting in {workdir}\n"), first.stderr
  assert (workdir / "seen.txt").read_text() == "0 True"
  printed = run(folder, "--config=mine.py:large", "--print_config").stdout
  assert (workdir / "config.json").read_text() == printed
  again = run(folder, "--config=mine.py:large", "--config.checkpoint.allow_previous=True")
  assert (again.returncode, again.stdout) == (0, f"going on in {workdir}\n"), again.stderr
  assert (workdir / "config.json").read_text() == printed


def test_a_budget_may_be_raised_and_a_model_not_be_changed_when_a_run_goes_on(folder):
  assert run(folder, "--config=mine.py", "--workdir=w").returncode == 0
  assert run(folder, "--config=mine.py", "--workdir=w", "--config.llm.most_cost=2.0").returncode == 0
  assert "config.llm.model" in refused(folder, "--config=mine.py", "--workdir=w", "--config.llm.model=another")


def test_a_workdir_of_other_settings_is_refused_naming_them(folder):
  assert run(folder, "--config=mine.py", "--workdir=w").returncode == 0
  before = (folder / "w/config.json").read_text()
  error = refused(folder, "--config=mine.py", "--workdir=w", "--config.seed=4", "--config.optimizer.betas=(0.9, 0.99)")
  assert f"{folder / 'w'} holds a run of other settings" in error
  assert "config.seed (0 there, 4 now)" in error
  assert "config.optimizer.betas ([0.9, 0.95] there, [0.9, 0.99] now)" in error
  assert (folder / "w/config.json").read_text() == before

  (folder / "w/config.json").write_text("{")
  assert "is not a saved config" in refused(folder, "--config=mine.py", "--workdir=w")


def test_a_run_that_wrote_nothing_does_not_hold_its_workdir(folder):
  (folder / "w").mkdir()
  (folder / "w/config.json").write_text('{"seed": 9}')
  assert run(folder, "--config=mine.py", "--workdir=w").returncode == 0
  assert json.loads((folder / "w/config.json").read_text())["seed"] == 0


def test_an_error_in_the_settings_is_one_line_and_its_traceback_is_kept(folder):
  result = run(folder, "--config=mine.py", "--workdir=w", "--config.seed=1")
  log = folder / "w/error.log"
  assert (result.returncode, result.stderr) == (1, f"error: batch 7 must divide by 5 (traceback in {log})\n")
  assert "Traceback" in log.read_text() and "batch 7 must divide by 5" in log.read_text()


def test_numbers_that_ran_away_are_one_line_too(folder):
  result = run(folder, "--config=mine.py", "--workdir=w", "--config.seed=4")
  assert result.returncode == 1
  assert result.stderr == f"error: the gradient was NaN (traceback in {folder / 'w/error.log'})\n"


def test_a_config_with_variants_goes_to_the_comparison(folder):
  (folder / "two.py").write_text(CONFIG.replace('"variants": ()', '"variants": ({"name": "a"}, {"name": "b"})'))
  result = run(folder, "--config=two.py", "--workdir=w")
  assert result.returncode == 0, result.stderr
  assert (folder / "w/compared.txt").exists() and not (folder / "w/seen.txt").exists()


def test_an_error_of_the_program_keeps_its_traceback_on_the_console(folder):
  result = run(folder, "--config=mine.py", "--workdir=w", "--config.seed=2")
  assert result.returncode == 1
  assert "Traceback" in result.stderr and "a mistake in the program" in result.stderr
  assert "a mistake in the program" in (folder / "w/error.log").read_text()


def test_an_interrupt_is_no_traceback(folder):
  result = run(folder, "--config=mine.py", "--workdir=w", "--config.seed=3")
  assert (result.returncode, result.stderr) == (130, "interrupted; the same command goes on from the last checkpoint\n")

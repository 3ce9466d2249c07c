import runpy
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"qwenlong_jax": "qwenlong_jax", "kernels": "qwenlong_jax.kernels", "data": "qwenlong_jax.data"}


def source_files() -> dict[str, Path]:
  """Every file of the three source folders, by the path that an installed copy gives it."""
  # rglob does not go through the links to kernels/ and data/.
  paths = [path.relative_to(ROOT) for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
  paths = [path for path in paths if "__pycache__" not in path.parts]
  return {str(Path(*FOLDERS[path.parts[0]].split("."), *path.parts[1:])): path for path in paths}


@pytest.fixture
def setup(monkeypatch) -> dict[str, Any]:
  """What setup.py hands to setuptools."""
  given: dict[str, Any] = {}
  monkeypatch.setattr(setuptools, "setup", lambda **arguments: given.update(arguments))
  monkeypatch.chdir(ROOT)
  runpy.run_path("setup.py")
  return given


def test_every_source_folder_is_a_package_inside_qwenlong_jax(setup):
  wanted = {str(Path(name).parent).replace("/", ".") for name in source_files() if name.endswith(".py")}
  assert set(setup["packages"]) == wanted
  assert all(package.split(".")[0] == "qwenlong_jax" for package in setup["packages"])
  assert setup["package_dir"] == {package: folder for folder, package in FOLDERS.items()}


def test_every_folder_with_code_has_an_init():
  folders = {path.parent for path in source_files().values() if path.suffix == ".py"}
  assert [str(folder) for folder in folders if not (ROOT / folder / "__init__.py").exists()] == []


def test_the_links_beside_the_code_lead_to_the_top_level_folders():
  for name in ("kernels", "data"):
    link = ROOT / "qwenlong_jax" / name
    assert link.is_symlink() and link.resolve() == ROOT / name


LOOK_UP = """
import importlib.util
for name in ("qwenlong_jax", "qwenlong_jax.kernels", "qwenlong_jax.data", "kernels", "data"):
  spec = importlib.util.find_spec(name)
  print(name, spec.origin if spec else None)
"""


def look_up(folder: Path, path: str = "") -> dict[str, Path | None]:
  """Where an interpreter started in `folder` finds the modules, `path` put before its own."""
  environment = {"PYTHONPATH": path} if path else {}
  found = subprocess.run(
    [sys.executable, "-c", LOOK_UP], cwd=folder, env=environment, capture_output=True, text=True, check=True
  )
  pairs = [line.split(" ", 1) for line in found.stdout.splitlines()]
  return {name: None if place == "None" else Path(place).resolve() for name, place in pairs}


def test_this_install_imports_both_folders_under_the_package_only(tmp_path):
  found = look_up(tmp_path)
  assert found["qwenlong_jax"] == ROOT / "qwenlong_jax/__init__.py"
  assert found["qwenlong_jax.kernels"] == ROOT / "kernels/__init__.py"
  assert found["qwenlong_jax.data"] == ROOT / "data/__init__.py"
  for name in ("kernels", "data"):
    place = found[name]
    assert place is None or ROOT not in place.parents, f"a global module {name} from {place}"


def closure(requirements: list[str]) -> set[str]:
  """The distributions that installing these brings along, without extras."""
  found: set[str] = set()
  waiting = [Requirement(text) for text in requirements]
  while waiting:
    one = waiting.pop()
    name = canonicalize_name(one.name)
    if name not in found and (one.marker is None or one.marker.evaluate({"extra": ""})):
      found.add(name)
      waiting += [Requirement(text) for text in metadata.requires(name) or []]
  return found


# The program that is given, where libraries are missing.
WITHOUT = """
import runpy, sys
from importlib.machinery import PathFinder

missing, program = sys.argv.pop(1).split(), sys.argv.pop(1)

class Plain(PathFinder):
  @classmethod
  def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in missing else super().find_spec(name, path, target)

sys.meta_path = [Plain if finder is PathFinder else finder for finder in sys.meta_path]
exec(program)
"""


@pytest.fixture
def plainly(setup):
  """Runs a program as it would run where no extra is installed."""
  plain = closure(setup["install_requires"])
  modules = metadata.packages_distributions().items()
  extra = {module for module, names in modules if not plain & set(map(canonicalize_name, names))} - {"qwenlong_jax"}
  assert {"rapidfuzz", "pyarrow", "torch", "libtpu"} <= extra and not extra & {"jax", "numpy", "grain", "yaml"}

  def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, " ".join(extra), program, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

  return run


def test_what_trains_imports_no_library_of_an_extra(plainly):
  done = plainly("from qwenlong_jax.kernels import benchmark; from qwenlong_jax.stages import plan, recipe, sweep")
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
  "program, arguments, said",
  [
    ("experiments/run.py", ("--config=synthesize.py", "--config.documents=data"), "pip install -e '.[synthesis]'"),
    ("kernels/benchmark.py", ("--schedule",), "pip install libtpu"),
  ],
)
def test_what_takes_an_extra_says_which(plainly, tmp_path, program, arguments, said):
  path = str(ROOT / "experiments")
  where = (f"--workdir={tmp_path}",) if program.endswith("run.py") else ()
  start = f"sys.path.insert(0, {path!r}); runpy.run_path({program!r}, run_name='__main__')"
  done = plainly(start, *arguments, *where)
  assert done.returncode == 1 and said in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.slow
def test_a_plain_install_holds_every_source_file(tmp_path):
  checkout = tmp_path / "checkout"
  checkout.mkdir()
  for name in ("setup.py", "pyproject.toml"):
    shutil.copy(ROOT / name, checkout)
  for folder in FOLDERS:
    shutil.copytree(ROOT / folder, checkout / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
  pip = [sys.executable, "-m", "pip"]
  subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, checkout], check=True)
  (wheel,) = tmp_path.glob("*.whl")
  packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
  assert packed == set(source_files())

  installed = tmp_path / "installed"
  subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", installed, wheel], check=True)
  found = look_up(tmp_path, path=str(installed))
  assert found["qwenlong_jax.kernels"] == installed / "qwenlong_jax/kernels/__init__.py"
  assert found["qwenlong_jax.data"] == installed / "qwenlong_jax/data/__init__.py"
  assert installed not in [place.parents[1] for name in ("kernels", "data") if (place := found[name])]

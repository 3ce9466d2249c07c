"""Texts are UTF-8 whatever the locale: each is opened with its encoding named (Ruff's rule, PLW1514, sees no paths)."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# The position of `encoding`, and of the mode where there is one, among the arguments of a path's methods.
METHODS = {"read_text": 0, "write_text": 1}


def unnamed(source: str) -> Iterator[int]:
  """Lines that open a text by the locale's encoding."""
  for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
    if any(keyword.arg == "encoding" for keyword in call.keywords) or ast.unparse(call.func) == "tarfile.open":
      continue
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    modes = [mode.value for mode in call.args if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
    if name == "open" and not any("b" in mode for mode in modes):
      yield call.lineno
    # A function of the name takes a path first.
    if name in METHODS and isinstance(call.func, ast.Attribute) and len(call.args) <= METHODS[name]:
      yield call.lineno


def test_every_text_names_its_encoding() -> None:
  files = [path for folder in ("data", "experiments", "qwenlong_jax") for path in (ROOT / folder).rglob("*.py")]
  assert [f"{path}:{line}" for path in files for line in unnamed(path.read_text(encoding="utf-8"))] == []


def test_what_opens_by_the_locale_is_seen() -> None:
  source = 'p.open()\nopen(p, "a")\np.read_text()\np.write_text(t)\np.open("rb")\np.open(encoding="utf-8")\n'
  assert list(unnamed(source)) == [1, 2, 3, 4]

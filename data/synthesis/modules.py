"""A Python module as its parser sees it, and what names mean by its imports."""

import ast
from functools import lru_cache
from pathlib import PurePosixPath


@lru_cache(maxsize=1)
def parsed(text: str) -> ast.Module | None:
  """None if it does not parse. Who asks again for the last one gets the same."""
  try:
    return ast.parse(text)
  except (SyntaxError, ValueError, RecursionError):
    return None


def line_starts(text: str) -> list[int]:
  """The first character of each line, and one behind the end of the last."""
  starts = [0]
  for line in text.split("\n"):
    starts.append(starts[-1] + len(line) + 1)
  return starts


def imports(tree: ast.Module, path: str) -> dict[str, str]:
  """Name at the top of the module at `path` -> the dotted name of what was imported under it."""
  package = PurePosixPath(path).parent.parts
  found: dict[str, str] = {}
  for node in tree.body:
    if isinstance(node, ast.Import):
      found |= {name.asname: name.name for name in node.names if name.asname}
      found |= {name.name.partition(".")[0]: name.name.partition(".")[0] for name in node.names if not name.asname}
    elif isinstance(node, ast.ImportFrom):
      above = package[: len(package) - node.level + 1] if node.level else ()
      found |= {n.asname or n.name: ".".join([*above, *filter(None, [node.module]), n.name]) for n in node.names}
  return found


def dotted(node: ast.expr) -> str:
  """The text of a name or of attributes of one, else ""."""
  if isinstance(node, ast.Attribute):
    before = dotted(node.value)
    return f"{before}.{node.attr}" if before else ""
  return node.id if isinstance(node, ast.Name) else ""


def meant(name: str, known: dict[str, str]) -> str:
  """What a dotted name is in full, if it begins with an import."""
  first, dot, rest = name.partition(".")
  return known[first] + dot + rest if first in known else ""


def is_of(name: str, path: str) -> bool:
  """Whether a full name is one of the module at `path`, as far as that tells."""
  file = PurePosixPath(path).with_suffix("")
  module = file.parent.parts if file.name == "__init__" else file.parts
  wanted = tuple(name.split("."))[:-1]
  return bool(wanted) and module[-len(wanted) :] == wanted

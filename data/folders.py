"""The documents of one or several folders, each under a name of its own; what is no document comes as refused."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from qwenlong_jax.data.documents import Document, Rejected
from qwenlong_jax.data.reading import find, read


def gather(roots: Sequence[Path | str]) -> Iterator[Document | Rejected]:
  """What the roots hold, read and cleaned, neither judged nor compared."""
  for file in files(roots):
    yield from documents_of(*file)


def files(roots: Sequence[Path | str]) -> list[tuple[Path, Path, str]]:
  """(root, file, what goes before the names of its documents) of every file, in order: of several roots, their names.

  Raises:
    FileNotFoundError: a root is not there.
  """
  folders = list(map(Path, roots))
  called = names(folders)
  before = [f"{name}/" if len(folders) > 1 else "" for name in called]
  return [(root, path, name) for root, name in zip(folders, before, strict=True) for path in find([root])]


def documents_of(root: Path, path: Path, before: str) -> Iterator[Document | Rejected]:
  """Those of one file, as `files` gives it."""
  for found in read(path, root):
    if isinstance(found, Document):
      yield dataclasses.replace(found, id=f"{before}{found.id}")
    else:
      yield dataclasses.replace(found, path=f"{before}{found.path}")


def names(roots: Sequence[Path]) -> list[str]:
  """The roots' last names; the second of a name gets a number."""
  last = [root.resolve().name for root in roots]
  return [f"{name}-{last[:i].count(name) + 1}" if name in last[:i] else name for i, name in enumerate(last)]

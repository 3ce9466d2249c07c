"""A corpus of documents, one at a time: found, read, judged by rules, without what came before; the rest as refused."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from qwenlong_jax.data.deduplication import Duplicates, signature
from qwenlong_jax.data.documents import Document, Rejected, check, judge
from qwenlong_jax.data.reading import find, read


def load(
  roots: Sequence[Path | str], languages: Sequence[str] = (), threshold: float = 0.8
) -> Iterator[Document | Rejected]:
  """Each file and record below the roots, in order, as a document or as `Rejected`: none is left out silently.

  `languages` are ISO 639-1 codes, none for any; `threshold` is the Jaccard similarity from which a text repeats one
  before. Of several roots each gives its documents' ids its name. Memory grows by 8 KB a document.
  """
  check(languages)
  duplicates = Duplicates(threshold)
  for found in gather(roots):
    rejected = found if isinstance(found, Rejected) else judge(found, languages) or repeats(found, duplicates)
    yield rejected or found


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


def repeats(document: Document, duplicates: Duplicates) -> Rejected | None:
  match = duplicates.match(document.id, signature(document.text))
  if match is None:
    return None
  if match.exact:
    return Rejected(document.id, "duplicate", f"of {match.first}")
  return Rejected(document.id, "near_duplicate", f"of {match.first}, Jaccard similarity {match.jaccard:.2f}")

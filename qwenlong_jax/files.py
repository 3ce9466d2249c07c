"""Files that a kill leaves whole or not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def publish(path: Path) -> Iterator[Path]:
  """A path beside `path` to write to, which takes its name at the end; makes the folder.

  What an error or a kill left half-written is written over the next time.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f".writing-{path.name}")
  yield partial
  partial.replace(path)


def write_text(path: Path, text: str) -> Path:
  """All of the text, in UTF-8, or nothing; returns the path."""
  with publish(path) as partial:
    partial.write_text(text, encoding="utf-8")
  return path

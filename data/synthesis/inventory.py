"""Which files a synthesis is of: its parts are numbered by their order, so a workdir belongs to one list of them."""

import json
from collections.abc import Sequence

from qwenlong_jax.data.synthesis.parts import Chunk, Settings
from qwenlong_jax.files import write_text


def check(settings: Settings, chunks: Sequence[Chunk]) -> None:
  """Writes the list of files at a first start; later compares it. By size and time of change, which every start can
  afford: hashes would read a whole corpus to find that nothing is left to do.

  Raises:
    ValueError: the files are not those that the workdir was started with.
  """
  path = settings.parts("files.jsonl")
  now = {}
  for root, file, before in (found for chunk in chunks for found in chunk.files):
    known = file.stat()
    now[f"{before}{file.relative_to(root if root.is_dir() else root.parent)}"] = [known.st_size, known.st_mtime_ns]
  if not path.exists():
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in now.items()))
    return
  then = dict(json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1])
  for name in sorted(then.keys() | now.keys()):
    if then.get(name) != now.get(name):
      what = "is new" if name not in then else "is gone" if name not in now else "has changed"
      raise ValueError(
        f"{name} {what} since {settings.folder} was started, and what it holds is of the files as they were, its "
        "tokenizer too; use another --workdir, or remove all that is in it but replies to start anew"
      )

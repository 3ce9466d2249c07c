"""Reading a corpus: megabytes of text a core-minute by step, and that memory stays flat as documents become many.

  python experiments/collect_documents.py --out=documents
  python experiments/benchmark_documents.py --corpus=documents     # 1 minute, four times the corpus on disk

Runs the steps of `corpus.load` one after the other on every document, in a process of its own: over the corpus, and
over several of it: itself, and copies whose letters are moved along the alphabet, which are other texts of the same
kind. Time is that of the processor. Memory is anonymous memory at its end beyond that at the first document, and the
peak beyond it, which holds the largest document on its way.
"""

import re
import string
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import app, flags

from qwenlong_jax.data.corpus import gather
from qwenlong_jax.data.deduplication import Duplicates, signature
from qwenlong_jax.data.documents import Document, clean, judge

CORPUS = flags.DEFINE_string("corpus", None, "folder of documents", required=True)
TIMES = flags.DEFINE_integer("times", 4, "of how many corpora the larger one is made")
MEASURED = flags.DEFINE_bool("measured", False, "used by the program itself: this process is to measure")

SUFFIXES = {".txt", ".md", ".rst", ".py"}


def copy(corpus: Path, out: Path, by: int) -> None:
  """The plain texts of a corpus with their letters moved along the alphabet."""
  lower, upper = string.ascii_lowercase, string.ascii_uppercase
  moved = str.maketrans(lower + upper, lower[by:] + lower[:by] + upper[by:] + upper[:by])
  for path in sorted(corpus.rglob("*")):
    if path.suffix in SUFFIXES:
      target = out / str(by) / path.relative_to(corpus)
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_text(path.read_text(encoding="utf-8", errors="replace").translate(moved), encoding="utf-8")


def memory(field: str) -> float:
  """Megabytes: RssAnon (anonymous now), VmHWM (all, at its peak), VmRSS."""
  found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
  return int(found[1]) / 1000 if found else float("nan")


def measure(folder: Path) -> None:
  """One row per step: what `corpus.load` does to each document."""
  seconds: Counter[str] = Counter()
  kept = size = 0
  duplicates = Duplicates()
  found: Iterator = gather([folder])
  document = next(found)
  start, resident = memory("RssAnon"), memory("VmRSS")
  while document is not None:
    if isinstance(document, Document):
      size += len(document.text.encode())
      with timed("cleaning (part of reading)", seconds):
        clean(document.text)
      with timed("rules", seconds):
        judge(document)
      with timed("signatures", seconds):
        signed = signature(document.text)
      with timed("matching", seconds):
        kept += duplicates.match(document.id, signed) is None
    with timed("reading", seconds):
      document = next(found, None)
  print(f"{size / 1e6:.1f} MB of text, {kept:,} documents kept")
  total = sum(seconds.values()) - seconds["cleaning (part of reading)"]
  for step, spent in [*seconds.items(), ("all", total)]:
    print(f"  {step:28}{size / 1e6 / (spent / 60):10,.0f} MB a core-minute")
  end, peak = memory("RssAnon") - start, memory("VmHWM") - resident
  print(f"  memory: {end:.0f} MB at the end, {1000 * end / kept:.1f} kB a document; at the peak {peak:.0f} MB")


@contextmanager
def timed(step: str, seconds: Counter[str]) -> Iterator[None]:
  start = time.process_time()
  yield
  seconds[step] += time.process_time() - start  # type: ignore[assignment]


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"did not expect {argv[1:]}; the flags are --name=value")
  corpus = Path(CORPUS.value)
  if MEASURED.value:
    measure(corpus)
    return
  with tempfile.TemporaryDirectory() as folder:
    for times in (1, TIMES.value):
      for by in range(times):
        copy(corpus, Path(folder), by)
      print(f"{times} x {corpus}", flush=True)
      subprocess.run([sys.executable, __file__, f"--corpus={folder}", "--measured"], check=True)


if __name__ == "__main__":
  app.run(main)

"""Reading a corpus: megabytes of text a core-minute by step and by format, and that memory stays flat as documents
become many.

  python experiments/collect_documents.py --out=documents
  python experiments/benchmark_documents.py --corpus=documents     # 1 minute, four times the corpus on disk
  python experiments/benchmark_documents.py --corpus=documents --suffixes=.html

Runs the steps of a synthesis' reading one after the other on every document, in a process of its own: over the corpus,
and over several of it: itself, and copies whose letters are moved along the alphabet, which are other texts of the same
kind. Time is that of the processor; a megabyte is one of the text that comes out, and of a format's files as well.
Memory is anonymous memory at its end beyond that at the first document, and the peak beyond it, which holds the largest
document on its way.
"""

import math
import re
import string
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from absl import app, flags

from qwenlong_jax.data.deduplication import Duplicates, signature
from qwenlong_jax.data.documents import Document, clean, judge
from qwenlong_jax.data.folders import gather

CORPUS = flags.DEFINE_string("corpus", None, "folder of documents", required=True)
SUFFIXES = flags.DEFINE_list("suffixes", [".txt", ".md", ".rst", ".py", ".csv", ".html"], "formats to read")
TIMES = flags.DEFINE_integer("times", 4, "of how many corpora the larger one is made")
MEASURED = flags.DEFINE_bool("measured", False, "used by the program itself: this process is to measure")

# Letters of markup stay: tags with their attributes, and entities.
_WORDS = {".html": re.compile(r"(?:<[^>]*>|&\w+;)+|[A-Za-z]+")}


def copy(corpus: Path, out: Path, by: int) -> None:
  """The files of a corpus with the letters of their text moved along the alphabet."""
  lower, upper = string.ascii_lowercase, string.ascii_uppercase
  moved = str.maketrans(lower + upper, lower[by:] + lower[:by] + upper[by:] + upper[:by])

  def word(found: re.Match[str]) -> str:
    return found[0] if found[0][0] in "<&" else found[0].translate(moved)

  for path in sorted(corpus.rglob("*")):
    if path.suffix in SUFFIXES.value and path.is_file():
      target = out / str(by) / path.relative_to(corpus)
      target.parent.mkdir(parents=True, exist_ok=True)
      text = path.read_text(encoding="utf-8", errors="replace")
      text = _WORDS[path.suffix].sub(word, text) if path.suffix in _WORDS else text.translate(moved)
      target.write_text(text, encoding="utf-8")


def memory(field: str) -> float:
  """Megabytes: RssAnon (anonymous now), VmHWM (all, at its peak), VmRSS."""
  found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE)
  return int(found[1]) / 1000 if found else float("nan")


def measure(folder: Path) -> None:
  """A line per step, what is done to each document, and a line per format."""
  seconds: Counter[tuple[str, str]] = Counter()
  text: Counter[str] = Counter()
  raw: Counter[str] = Counter()
  for path in folder.rglob("*"):
    raw[path.suffix] += path.stat().st_size if path.is_file() else 0
  duplicates = Duplicates()
  kept, start, resident = 0, math.nan, math.nan
  for of, document in read(folder, seconds):
    if kept == 0:
      start, resident = memory("RssAnon"), memory("VmRSS")
    text[of] += len(document.text.encode())
    with timed("cleaning (part of reading)", of, seconds):
      clean(document.text)
    with timed("rules", of, seconds):
      judge(document)
    with timed("signatures", of, seconds):
      signed = signature(document.text)
    with timed("matching", of, seconds):
      kept += duplicates.match(document.id, signed) is None
  print(f"{text.total() / 1e6:.1f} MB of text, {kept:,} documents kept")
  for step in dict.fromkeys(step for _, step in seconds):
    print(f"  {step:28}{rate(text.total(), sum(s for (_, other), s in seconds.items() if other == step))}")
  print(f"  {'all':28}{rate(text.total(), whole(seconds, text))}")
  for of in sorted(text):
    spent = whole(seconds, [of])
    print(f"  {'all of ' + of:28}{rate(text[of], spent)}, {raw[of] / 1e6 / spent * 60:,.0f} MB of its files")
  end, peak = memory("RssAnon") - start, memory("VmHWM") - resident
  print(f"  memory: {end:.0f} MB at the end, {1000 * end / kept:.1f} kB a document; at the peak {peak:.0f} MB")


def read(folder: Path, seconds: Counter[tuple[str, str]]) -> Iterator[tuple[str, Document]]:
  """(its format, a document)."""
  found = gather([folder])
  while True:
    start = time.process_time()
    document = next(found, None)
    spent = time.process_time() - start
    if document is None:
      return
    path = document.source.path if isinstance(document, Document) else document.path
    of = Path(path).suffix.partition("#")[0]
    seconds[of, "reading"] += spent  # type: ignore[assignment]
    if isinstance(document, Document):
      yield of, document


def rate(size: float, seconds: float) -> str:
  return f"{size / 1e6 / seconds * 60:10,.0f} MB a core-minute"


def whole(seconds: Counter[tuple[str, str]], formats: Collection[str]) -> float:
  return sum(s for (of, step), s in seconds.items() if of in formats and not step.startswith("cleaning"))


@contextmanager
def timed(step: str, of: str, seconds: Counter[tuple[str, str]]) -> Iterator[None]:
  start = time.process_time()
  yield
  seconds[of, step] += time.process_time() - start  # type: ignore[assignment]


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

"""data/README.md: the card of the data sets of a synthesis, with the front matter that the Hugging Face Hub reads."""

import json
import os
import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from qwenlong_jax.files import write_text
from qwenlong_jax.reporting import gates
from qwenlong_jax.reporting.compare import as_markdown
from qwenlong_jax.reporting.facts import Fact, Survey, tasks
from qwenlong_jax.reporting.gates import Grid
from qwenlong_jax.reporting.page import read_config
from qwenlong_jax.reporting.plots import task_title
from qwenlong_jax.reporting.synthesis import summary

# Of the files that say where documents come from: the first kind is quoted, of the second the first line.
_SOURCES, _LICENCES = ("sources",), ("license", "licence", "copying", "notice")
_QUOTED = 6000  # characters
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))


def data_card(workdir: str | os.PathLike[str], found: Survey) -> Path:
  """Writes <workdir>/data/README.md about the data sets there; returns its path.

  What is said of the documents' origin and licence is what lies beside them: SOURCES.md, LICENSE and the like.
  """
  folder = Path(workdir)
  config, facts = read_config(folder), found.facts
  folders = [Path(path.strip()) for path in str(config.get("documents") or "").split(",") if path.strip()]
  origin = origins(folders)
  splits = list(dict.fromkeys(fact.split for fact in facts))
  counts = gates.read_counts(folder, splits)
  name = folder.resolve().name
  parts = [
    front_matter(name, len(facts), bool(origin), config.get("synthesis", {}).get("languages", ())),
    f"# {name}\n\n{len(facts):,} questions over long contexts, each with an answer that can be verified and the places "
    f"of its evidence. {_makers(facts)}",
    "## Samples",
    as_markdown(by_split(facts, splits)),
    "Of each kind:",
    as_markdown(kinds(facts, splits)),
    "By the domain of the documents:",
    as_markdown(gates.domains(facts)),
    "Tokens of context and question:",
    as_markdown(lengths(facts, splits)),
    _FIELDS,
    "## How it was made",
    made(config, facts),
    as_markdown(gates.through(folder, counts, None)),
    "## Sources and licences",
    origin or _unknown(folders),
  ]
  (folder / "data").mkdir(exist_ok=True)
  return write_text(folder / "data" / "README.md", "\n\n".join(parts) + "\n")


_FIELDS = """## Format

Each split is a folder of ArrayRecord files, a JSON record for each sample: `id`, `task`, `context`, `question`,
`answer`, `reasoning`, `evidence` (a list of `document`, `start`, `end`: characters of the context) and `provenance`
(domain, kind, seed, the program that gave the answer, documents with their SHA-256).
`qwenlong_jax.data.loading.read_each` reads them; `python experiments/export_data.py` writes them as JSONL or Parquet.

Documents are parted by a hash of their names, files of separated values whole and by their size: no document and no
table lies in two splits. Records of one JSONL or Parquet file are documents of their own, which may lie in different
splits."""


def front_matter(name: str, count: int, known: bool, languages: Sequence[str]) -> str:
  """YAML. The licence is "other" where something beside the documents speaks of it, else "unknown"."""
  size = next((label for limit, label in _SIZES if count < limit), "n>1M")
  lines = [
    f"pretty_name: {json.dumps(name, ensure_ascii=False)}",
    f"license: {'other' if known else 'unknown'}",
    # As JSON, which is YAML: unquoted, Norwegian ("no") would be false.
    *([f"language: {json.dumps(list(languages))}"] if languages else []),
    'task_categories: ["question-answering"]',
    f'size_categories: ["{size}"]',
    'tags: ["long-context", "synthetic", "verifiable-rewards", "reinforcement-learning"]',
    "viewer: false",
  ]
  return "\n".join(["---", *lines, "---"])


def by_split(facts: Sequence[Fact], splits: Sequence[str]) -> Grid:
  found = Counter((fact.task, fact.split) for fact in facts)
  lines = [["Task", *splits, "All"]]
  for task in tasks(facts):
    row = [found[task, split] for split in splits]
    lines.append([task_title(task), *(f"{count:,}" for count in row), f"{sum(row):,}"])
  totals = [sum(fact.split == split for fact in facts) for split in splits]
  return [*lines, ["All", *(f"{count:,}" for count in totals), f"{len(facts):,}"]]


def kinds(facts: Sequence[Fact], splits: Sequence[str]) -> Grid:
  found = Counter((fact.task, fact.kind, fact.split) for fact in facts)
  names = sorted({(fact.task, fact.kind) for fact in facts}, key=lambda pair: (tasks(facts).index(pair[0]), pair[1]))
  return [["Task and kind", *splits]] + [
    [f"{task_title(task)}: {kind.replace('_', ' ')}", *(f"{found[task, kind, split]:,}" for split in splits)]
    for task, kind in names
  ]


def lengths(facts: Sequence[Fact], splits: Sequence[str]) -> Grid:
  lines = [["Split", "least", "median", "90th percentile", "most"]]
  for split in splits:
    if known := [fact.tokens for fact in facts if fact.split == split and fact.tokens is not None]:
      lines.append([split, *(f"{np.percentile(known, at):,.0f}" for at in (0, 50, 90, 100))])
  return lines


def _makers(facts: Sequence[Fact]) -> str:
  if models := sorted({fact.model for fact in facts} - {""}):
    return f"Language models took part in the making: {', '.join(models)}."
  return "Questions and answers were computed from documents, without a language model."


def made(config: dict[str, Any], facts: Sequence[Fact]) -> str:
  versions = sorted({fact.version for fact in facts if fact.version})
  try:
    package = version("qwenlong_jax")
  except PackageNotFoundError:
    package = "not installed"
  lines = [
    f"- qwenlong_jax {package}, generators' version {', '.join(versions) or 'not known'}, "
    f"Python {platform.python_version()}",
    *(f"- {name}: `{value}`" for name, value in summary(config)),
  ]
  rest = " and from the model's replies" if config.get("llm", {}).get("model") else ""
  return f"By `python experiments/run.py --config=synthesize.py`; all follows from these{rest}:\n\n" + "\n".join(lines)


def origins(folders: Sequence[Path]) -> str:
  """What the files of origin and licence say, in the folders of documents and those right below them; "" for none."""
  parts = []
  for folder in folders:
    inside = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())] if folder.is_dir() else []
    for path in (path for place in inside for path in sorted(place.iterdir()) if path.is_file()):
      name = path.name.lower()
      text = path.read_text(encoding="utf-8", errors="replace").strip() if _tells(name) else ""
      if text and name.startswith(_SOURCES):
        cut = f"\n\n… ({len(text) - _QUOTED:,} characters more in the file)" if len(text) > _QUOTED else ""
        parts.append(f"`{path}` says:\n\n{_quoted(text[:_QUOTED] + cut)}")
      elif text:
        parts.append(f"`{path}` begins:\n\n{_quoted(text.splitlines()[0][:300])}")
  return "\n\n".join(parts)


def _tells(name: str) -> bool:
  """Whether a file's name, lower-case, is that of one that speaks of origin or licence."""
  stem, _, suffix = name.partition(".")
  return stem in (*_SOURCES, *_LICENCES) and suffix in ("", "md", "txt")


def _quoted(text: str) -> str:
  return "\n".join(f"> {line}".rstrip() for line in text.splitlines())


def _unknown(folders: Sequence[Path]) -> str:
  places = ", ".join(f"`{folder}`" for folder in folders) or "the documents' folder"
  return (
    f"No SOURCES.md or LICENSE lies in {places}: the licence of the documents is the user's to know. Contexts repeat "
    "the documents word for word; see to their licence before the data sets are passed on."
  )

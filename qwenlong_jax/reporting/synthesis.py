"""synthesis_report.html: one self-contained page about a synthesis, what became of everything and what was made."""

import json
import os
from pathlib import Path
from typing import Any

from qwenlong_jax.files import write_text
from qwenlong_jax.reporting import gates, histograms
from qwenlong_jax.reporting.facts import Survey
from qwenlong_jax.reporting.page import read_config, render
from qwenlong_jax.reporting.passages import passages, strip
from qwenlong_jax.reporting.plots import task_title
from qwenlong_jax.types import Example

_BY_MODEL = ("evolve", "tables", "triples", "screens")  # settings of what a model does


def synthesis_report(workdir: str | os.PathLike[str], found: Survey, files: int | None = None) -> Path:
  """Writes <workdir>/synthesis_report.html; returns its path.

  Args:
    workdir: the folder of a synthesis.
    found: of its data sets, by facts.survey.
    files: how many files there were to read; None where it is not known.
  """
  folder = Path(workdir)
  if not folder.is_dir():
    raise FileNotFoundError(f"{folder} is no folder; give the workdir of a synthesis")
  config = read_config(folder)
  splits = list(dict.fromkeys(fact.split for fact in found.facts))
  counts = gates.read_counts(folder, splits)
  page = render(
    "synthesis.html.jinja",
    title=folder.resolve().name,
    summary=summary(config),
    config=json.dumps(config, indent=2, ensure_ascii=False) if config else "",
    samples=len(found.facts),
    splits=splits,
    through=gates.through(folder, counts, files),
    dropped=gates.dropped(counts),
    domains=gates.domains(found.facts),
    evolution=gates.evolution(folder),
    triples=gates.triples(folder),
    shortcuts=gates.shortcuts(folder),
    measured=sum(fact.pass_rate is not None for fact in found.facts),
    pictures=histograms.pictures(found.facts),
    shown=[sample(split, example) for split, example in found.shown],
    task_title=task_title,
  )
  return write_text(folder / "synthesis_report.html", page)


def summary(config: dict[str, Any]) -> list[tuple[str, str]]:
  """(name, value) of the settings that a synthesis follows from."""
  chosen = {name: config[name] for name in ("documents", "seed") if name in config} | config.get("synthesis", {})
  if chosen:
    chosen["tokenizer"] = config.get("tokenizer", {}).get("path") or "a BPE of the training documents"
  if (llm := config.get("llm", {})).get("model"):
    roles = {role: llm[role]["model"] for role in ("solver", "verifier") if llm[role]["model"]}
    chosen |= {"model": llm["model"], **roles}
    chosen |= {f"{group} {name}": value for group in _BY_MODEL for name, value in config.get(group, {}).items()}
  return [(name.replace("_", " "), _plain(value)) for name, value in chosen.items()]


def _plain(value: Any) -> str:
  return ", ".join(map(str, value)) or "–" if isinstance(value, list) else str(value)


def sample(split: str, example: Example) -> dict[str, Any]:
  """What the page shows of an example."""
  known = example.provenance
  program = known.get("program")
  return {
    "id": example.id,
    "split": split,
    "task": example.task,
    "kind": str(known.get("kind") or ""),
    "domain": str(known.get("domain") or ""),
    "tokens": known.get("tokens"),
    "question": example.question,
    "answer": example.answer,
    "reasoning": example.reasoning,
    "program": "" if program is None else json.dumps(program, indent=2, ensure_ascii=False),
    "documents": list(dict.fromkeys(span.document for span in example.evidence)),
    "characters": len(example.context),
    "spans": len(example.evidence),
    "marks": strip(example.context, example.evidence),
    "pieces": passages(example.context, example.evidence),
  }

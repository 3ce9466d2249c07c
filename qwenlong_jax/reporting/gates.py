"""What became of files, documents and drafts at each gate of the synthesis, as tables of text; the heading first."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwenlong_jax.reporting.facts import Fact, tasks
from qwenlong_jax.reporting.plots import task_title

Grid = list[list[str]]
Counts = Mapping[str, Mapping[str, int]]  # by split, then "outcome/task" or "dropped/task/kind/reason"

# An outcome's words; others that the counts name are shown under their own names.
_OUTCOMES = {
  "given_up": "Orders given up: no draft was kept",
  "duplicate": "Samples dropped: asked before",
  "contaminated": "Samples dropped: a test set holds them",
  "known": "Samples dropped: a model knows the answer without the context",
  "never_solved": "Samples dropped: a model never finds the answer in the context",
  "never_rewarded": "Samples dropped: the reward sees none of a model's right answers",
  "unchecked": "Samples dropped: no verdict of the models came about",
  "surplus": "Samples left over: enough of the task",
  "kept": "Samples kept",
}


def read_counts(folder: Path, splits: Sequence[str]) -> dict[str, dict[str, int]]:
  """What became of the samples of each split, where it is written."""
  files = {split: folder / "data" / split / "counts.json" for split in splits}
  return {split: json.loads(path.read_text(encoding="utf-8")) for split, path in files.items() if path.exists()}


def through(folder: Path, counts: Counts, files: int | None) -> Grid:
  """From the files to the samples that were kept, a column for each split. `files`: how many there were, if known."""
  documents, refused = _documents(folder), _refused(folder)
  lines = [["Gate", *counts, "All"]]
  blank = [""] * len(counts)
  if files is not None:
    lines.append(["Files", *blank, _number(files)])
  lines += [[f"Refused: {_words(reason)}", *blank, _number(n)] for reason, n in refused.most_common()]
  if documents:
    by_split = documents.get("splits", {})
    lines.append(["Documents", *(_number(by_split.get(s, 0)) for s in counts), _number(documents["documents"])])
  totals = {split: _outcomes(found) for split, found in counts.items()}
  seen = {outcome for found in totals.values() for outcome in found} - {"dropped"}
  others = [outcome for outcome in seen if outcome not in _OUTCOMES]
  drafts = {split: sum(found.values()) - found["given_up"] for split, found in totals.items()}
  lines.append(_line("Drafts of samples", drafts))
  for reason in _reasons(counts):
    name = f"Drafts dropped: {_words(reason)}"
    lines.append(_line(name, {s: _sum(found, reason) for s, found in counts.items()}))
  for outcome in [*sorted(others), *(outcome for outcome in _OUTCOMES if outcome in seen)]:
    name = _OUTCOMES.get(outcome, _words(outcome).capitalize())
    lines.append(_line(name, {split: found[outcome] for split, found in totals.items()}))
  return lines


def dropped(counts: Counts) -> Grid:
  """Drafts that were dropped, of all splits: a line for each task and kind, a column for each reason."""
  total = _together(counts)
  reasons = _reasons(counts)
  found: dict[tuple[str, str], Counter[str]] = {}
  for key, count in total.items():
    if key.startswith("dropped/"):
      task, kind, reason = [*key.split("/", 3)[1:], "", ""][:3]
      found.setdefault((task, kind), Counter())[reason] += count
  heading = ["Task and kind", *map(_words, reasons), "all"]
  return [heading] + [
    [f"{task_title(task)}: {_words(kind)}", *(_number(by[reason]) for reason in reasons), _number(by.total())]
    for (task, kind), by in sorted(found.items())
  ]


def domains(facts: Sequence[Fact]) -> Grid:
  """Samples of each domain, by task."""
  order = tasks(facts)
  found = Counter((fact.domain, fact.task) for fact in facts)
  lines = [["Domain", *map(task_title, order), "All"]]
  for domain in sorted({fact.domain for fact in facts}):
    row = [found[domain, task] for task in order]
    lines.append([domain, *map(_number, row), _number(sum(row))])
  return lines


def evolution(folder: str | os.PathLike[str]) -> Grid:
  """A line for each round of the self-evolving trio, over all groups of documents: how hard its questions were for the
  solver. No lines where there was none."""
  total: dict[int, Counter[str]] = {}
  for path in sorted((Path(folder) / "parts" / "evolved").glob("*.json")):
    for one in json.loads(path.read_text(encoding="utf-8")):
      found = total.setdefault(one["number"], Counter())
      judged = one["passed_rules"] - one["rejected"].get("unchecked", 0)
      found.update({name: one[name] for name in ("proposed", "passed_rules", "kept")})
      found.update(judged=judged, solved=judged * (one["solve_rate"] or 0))
  lines = [
    [
      str(number),
      *map(_number, (found["proposed"], found["passed_rules"])),
      f"{found['solved'] / found['judged']:.2f}" if found["judged"] else "–",
      _number(found["kept"]),
    ]
    for number, found in sorted(total.items())
  ]
  return [["Round", "Questions", "pass the rules", "solve rate", "kept"], *lines] if lines else []


def triples(folder: str | os.PathLike[str]) -> Grid:
  """What became of the facts that a model found in documents, over all clusters. No lines where there were none."""
  graphs = [_read(path) for path in sorted((Path(folder) / "parts" / "graphs").glob("*.json"))]
  portions = [_read(path) for path in sorted((Path(folder) / "parts" / "triples").glob("*.json"))]
  lines = [
    ["Documents read", _number(sum(len(graph["documents"]) for graph in graphs))],
    ["Triples kept", _number(sum(len(graph["triples"]) for graph in graphs))],
    *_rejected("Triples", portions),
    ["Relations joined to another of their meaning", _number(sum(len(g) - 1 for one in graphs for g in one["groups"]))],
    *_rejected("Synonyms", graphs),
    ["Entities", _number(sum(graph["entities"] for graph in graphs))],
    ["Facts between them", _number(sum(graph["edges"] for graph in graphs))],
  ]
  return [["Triples", "Number"], *lines] if graphs else []


def _rejected(what: str, parts: Sequence[Mapping[str, Any]]) -> Grid:
  total: Counter[str] = Counter()
  for part in parts:
    total.update(part["rejected"])
  return [[f"{what} rejected: {_words(reason)}", _number(count)] for reason, count in total.most_common()]


def _read(path: Path) -> dict[str, Any]:
  found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
  return found


def shortcuts(folder: Path) -> Grid:
  """data/shortcuts.json, in whatever shape: what answers questions without reading. No lines where it is not there."""
  path = folder / "data" / "shortcuts.json"
  if not path.exists():
    return []
  return as_grid(json.loads(path.read_text(encoding="utf-8")))


def as_grid(value: Any) -> Grid:
  """A line for each entry of a list or dict; nested dicts as dotted columns."""
  named = isinstance(value, dict)
  entries = list(value.items()) if named else [("", entry) for entry in (value if isinstance(value, list) else [value])]
  rows = [_flat(entry, "") if isinstance(entry, dict) else {"value": entry} for _, entry in entries]
  columns = list(dict.fromkeys(column for row in rows for column in row))
  body = [
    [*([name] if named else []), *(_shown(row.get(column)) for column in columns)]
    for (name, _), row in zip(entries, rows)
  ]
  return [[*([""] if named else []), *columns], *body] if body else []


def _flat(value: Mapping[str, Any], prefix: str) -> dict[str, Any]:
  found: dict[str, Any] = {}
  for key, inner in value.items():
    name = f"{prefix}{key}"
    found |= _flat(inner, f"{name}.") if isinstance(inner, dict) else {name: inner}
  return found


def _shown(value: Any) -> str:
  if value is None:
    return "–"
  if isinstance(value, bool | str):
    return str(value)
  if isinstance(value, int):
    return _number(value)
  return f"{value:.3f}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _documents(folder: Path) -> dict[str, Any]:
  path = folder / "parts" / "clusters" / "counts.json"
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _refused(folder: Path) -> Counter[str]:
  path = folder / "parts" / "clusters" / "refused.jsonl"
  if not path.exists():
    return Counter()
  with path.open(encoding="utf-8") as lines:
    return Counter(json.loads(line)["reason"] for line in lines)


def _outcomes(found: Mapping[str, int]) -> Counter[str]:
  total: Counter[str] = Counter()
  for key, count in found.items():
    total[key.split("/")[0]] += count
  return total


def _together(counts: Counts) -> Counter[str]:
  return sum((Counter(found) for found in counts.values()), Counter())


def _reasons(counts: Counts) -> list[str]:
  """Of drafts that were dropped, the commonest first."""
  total: Counter[str] = Counter()
  for key, count in _together(counts).items():
    if key.startswith("dropped/"):
      total[key.split("/")[-1]] += count
  return [reason for reason, _ in total.most_common()]


def _sum(found: Mapping[str, int], reason: str) -> int:
  return sum(n for key, n in found.items() if key.startswith("dropped/") and key.split("/")[-1] == reason)


def _line(name: str, by_split: Mapping[str, int]) -> list[str]:
  return [name, *map(_number, by_split.values()), _number(sum(by_split.values()))]


def _number(value: int) -> str:
  return f"{value:,}"


def _words(name: str) -> str:
  return name.replace("_", " ")

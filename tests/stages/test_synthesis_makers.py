"""All makers that take a model, through the command line and over real HTTP: triples, tables, rewording, the trio."""

import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import check_data
import pytest
import roles
from loopback import Loopback, prompt_of
from made import again, digest, every, lines, write_documents

from qwenlong_jax.types import TASKS

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SETTINGS: dict[str, Any] = {
  "synthesis": {"train": 8, "validation": 0, "test": 2, "train_share": 70, "validation_share": 0, "test_share": 30},
  "llm": {"model": "m", "max_tokens": 64, "concurrency": 4, "timeout": 2.0},
  "evolve": {"groups": 2, "rounds": 1, "longest": 2000, "samples": 3},
  "tables": {"contexts": 5, "questions": 1},
  "triples": {"samples": 6},
  "screens": {"samples": 2},
}
SHORT = {"synthesis.targets": "(2200, 2800)", "synthesis.vocab_size": 2048, "synthesis.workers": 1}


def command(documents: Path, url: str, folder: Path) -> list[str]:
  known = {f"{group}.{name}": value for group, of in SETTINGS.items() for name, value in of.items()} | SHORT
  known |= {"documents": documents, "llm.url": url}
  run = [sys.executable, str(EXPERIMENTS / "run.py"), f"--config={Path(__file__).parent / 'small.py'}"]
  return [*run, f"--workdir={folder}", *(f"--config.{key}={value}" for key, value in known.items())]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
  return write_documents(tmp_path_factory.mktemp("corpus") / "general", trade=True)


@pytest.fixture(scope="module")
def first(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Loopback, str]]:
  """A run that nothing disturbed: its folder, the server that it asked, what it printed."""
  folder = tmp_path_factory.mktemp("first") / "made"
  with Loopback(roles.player(folder)) as server:
    done = subprocess.run(command(documents, server.url, folder), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    yield folder, server, done.stdout


def counts(folder: Path) -> Counter[str]:
  return sum((Counter(json.loads(path.read_text())) for path in (folder / "data").glob("*/counts.json")), Counter())


def test_every_maker_has_samples_in_the_data(first: tuple[Path, Loopback, str]) -> None:
  examples = every(first[0])
  kinds = Counter(example.provenance["generator"].rpartition("/")[0] for example in examples)
  assert {"self_evolving", "corpus_numeric/posed", "multi_hop/path"} < set(kinds)
  assert Counter(example.task for example in examples) == dict.fromkeys(TASKS, 10)
  assert {example.provenance["model"] for example in examples} == {"", "served"}


def test_reworded_is_what_leads_back_to_the_result(first: tuple[Path, Loopback, str]) -> None:
  tables = [example for example in every(first[0]) if example.task == "corpus_numeric"]
  reworded = [example for example in tables if "paraphrase" in example.provenance["checks"]]
  for example in reworded:
    original = example.provenance["checks"]["paraphrase"]["original"]
    assert example.question == f"I should like to know one thing. {original}"
    assert example.provenance["model"] == "served" and "grounded" in example.provenance["checks"]
  assert {example.provenance["kind"] for example in reworded} > {"posed"}
  assert all(example.question.startswith("Consider") for example in tables if example not in reworded)


def test_why_drafts_failed_is_counted(first: tuple[Path, Loopback, str]) -> None:
  folder = first[0]
  found = counts(folder)
  careless = [line for line in lines(folder, "reworded") if "corpus_numeric/rewording/name" in line["dropped"]]
  assert found["dropped/corpus_numeric/rewording/name"] == len(careless) > 0
  assert found["dropped/corpus_numeric/posed/degenerate"] > 0
  assert any(key.startswith("dropped/multi_hop/path/") for key in found)


def test_paths_lead_over_both_wordings_of_a_relation(first: tuple[Path, Loopback, str]) -> None:
  folder, _, said = first
  paths = [example for example in every(folder) if example.provenance["kind"] == "path"]
  for example in paths:
    steps = example.provenance["program"]["steps"]
    assert len(example.evidence) == len(steps) > 1 and example.answer in steps[-1]["quote"]
    assert [example.context[s.start : s.end] for s in example.evidence] == [step["quote"] for step in steps]
  said_of = {step["relation"] for example in paths for step in example.provenance["program"]["steps"]}
  assert said_of == {"trades with", "does trade with", "is twinned with"}
  page = (folder / "synthesis_report.html").read_text().partition("<h2>Triples</h2>")[2].partition("</section>")[0]
  for what, number in (("Documents read", 60), ("Triples kept", 60), ("Triples rejected: quote not found", 60)):
    assert f"<td>{what}</td><td>{number}</td>" in page and f"triples: {what.lower()}: {number}" in said
  assert "<td>Relations joined to another of their meaning</td><td>2</td>" in page


def test_the_checker_that_shares_no_code_passes_what_models_wrote(
  first: tuple[Path, Loopback, str], documents: Path, capsys: pytest.CaptureFixture[str]
) -> None:
  check_data.main([f"--data={first[0] / 'data'}", f"--documents={documents}", "--show=99"])
  said = capsys.readouterr()
  assert not re.findall("^(?:corpus_numeric|multi_hop|reading_comprehension)/.*", said.err, re.MULTILINE)
  for kind in ("multi_hop | path", "corpus_numeric | posed"):
    passed = re.search(rf"^\| {re.escape(kind)} \|(.*)\|$", said.out, re.MULTILINE)
    assert passed is not None and len(set(passed[1].split("|"))) == 1


def test_killed_while_it_reads_for_triples_it_pays_for_nothing_twice(
  first: tuple[Path, Loopback, str], documents: Path, tmp_path: Path
) -> None:
  folder, server, _ = first
  paid = len(server.bodies)
  assert again(server.bodies) == 0
  run = command(documents, server.url, tmp_path / "made")
  child = subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  while not any("Extract the facts" in prompt_of(body) for body in server.bodies[paid:]) and child.poll() is None:
    time.sleep(0.01)
  assert child.poll() is None
  child.kill()
  child.wait()
  assert not (tmp_path / "made" / "parts" / "graphs").exists()
  subprocess.run(run, check=True, capture_output=True, timeout=300)
  # What was under way when it was killed, four requests at most, is lost.
  assert again(server.bodies[paid:]) <= 4
  assert digest(tmp_path / "made") == digest(folder)

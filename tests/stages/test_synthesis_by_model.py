"""A model in the synthesis, over real HTTP: what it writes and screens, stopped and gone on with in every way."""

import io
import json
import multiprocessing
import re
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import roles
import small
from loopback import Act, Loopback, prompt_of, refuses, says
from made import again, digest, every, lines, write_documents
from ml_collections import ConfigDict

from qwenlong_jax.llm import Sampling, ask
from qwenlong_jax.rewards.rules import tokens
from qwenlong_jax.stages import synthesize
from qwenlong_jax.stages.synthesis_progress import spent
from qwenlong_jax.stages.synthesis_roles import models_of


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
  return write_documents(tmp_path_factory.mktemp("corpus") / "general")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Loopback]:
  with Loopback(roles.player(tmp_path / "made")) as running:
    yield running


def config_of(documents: Path, url: str, **changes: object) -> ConfigDict:
  """`llm_attempts=1` changes config.llm.attempts."""
  c = small.get_config()
  c.documents = str(documents)
  c.synthesis.update({"train": 4, "validation": 0, "test": 2, "train_share": 70, "validation_share": 0})
  c.synthesis.update({"test_share": 30, "targets": (2200, 2800), "vocab_size": 2048, "workers": 1})
  c.llm.update({"url": url, "model": "m", "max_tokens": 64, "concurrency": 4, "timeout": 2.0})
  c.evolve.update({"groups": 4, "rounds": 2, "longest": 2000, "samples": 3})
  c.screens.update({"samples": 2})
  c.tables.update({"reword": False, "contexts": 0})
  c.triples.documents = 0
  c.update_from_flattened_dict({key.replace("_", ".", 1): value for key, value in changes.items()})
  return c.lock()


@pytest.fixture(scope="module")
def first(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
  """A run that nothing disturbed: its folder, beside it what it printed, and all that the model was asked."""
  folder = tmp_path_factory.mktemp("first") / "made"
  with Loopback(roles.player(folder)) as server, redirect_stdout(io.StringIO()) as said:
    synthesize.run(config_of(documents, server.url), folder)
  (folder.parent / "said.txt").write_text(said.getvalue())
  return folder, server.bodies


@pytest.fixture(scope="module")
def made(first: tuple[Path, list[dict[str, Any]]]) -> Path:
  return first[0]


def test_every_sample_passed_both_screens_and_has_its_difficulty(made: Path) -> None:
  for example in every(made):
    checks, rate = example.provenance["checks"], example.provenance["pass_rate"]
    assert not roles.knows(example.question) and checks["grounded"]["right"] == 0
    assert rate == sum(roles.finds(example.question, seed) for seed in range(2)) / 2
    assert (checks["robust"]["right"], checks["robust"]["samples"]) == (2 * rate, 2) and rate > 0
    assert checks["robust"]["solver"] == "served" and checks["robust"]["rewarded"] == checks["robust"]["right"]
    assert checks["robust"]["verifier"] in ("rule", "rule, served")
    assert example.provenance["difficulty"] == {0.5: 2, 1.0: 3}[rate]


def test_what_a_screen_rejects_is_counted_by_its_reason(made: Path) -> None:
  questions = [line["example"]["question"] for line in lines(made, "samples") if line["example"]]
  known = [question for question in questions if roles.knows(question)]
  unsolved = [q for q in questions if q not in known and not any(roles.finds(q, seed) for seed in range(2))]
  counts: Counter[str] = Counter()
  for path in (made / "data").glob("*/counts.json"):
    for key, count in json.loads(path.read_text()).items():
      counts[key.split("/")[0]] += count
  assert (counts["known"], counts["never_solved"]) == (len(known), len(unsolved)) and known and unsolved
  assert counts["kept"] == len(every(made)) == 30
  page = (made / "synthesis_report.html").read_text()
  assert "a model knows the answer without the context" in page and "pass@k" in page


def test_a_question_of_the_trio_stands_among_distractors_that_do_not_answer_it(made: Path) -> None:
  evolved = [example for example in every(made) if example.provenance["generator"] == "self_evolving/1"]
  assert evolved
  for example in evolved:
    past = example.provenance
    (span,) = example.evidence
    field, _, value = example.context[span.start : span.end].partition(": ")
    assert (value, example.task) == (example.answer, "reading_comprehension") and field.lower() in example.question
    assert 1100 <= past["tokens"] <= 2800 and example.context.count("=== ") > 4
    elsewhere = " ".join(tokens(example.context[: span.start] + example.context[span.end :]))
    assert f" {' '.join(tokens(example.answer))} " not in f" {elsewhere} "
    assert past["model"] == "served" and past["checks"]["solved"]["samples"] == 3
    assert [source["id"] for source in past["documents"]] == [span.document]


def test_no_document_is_evidence_in_two_splits(made: Path) -> None:
  splits: dict[str, str] = {}
  for example in every(made):
    for source in example.provenance["documents"]:
      assert splits.setdefault(source["id"], example.provenance["split"]) == example.provenance["split"]
  assert set(splits.values()) == {"train", "test"}


def test_the_solve_rate_of_every_round_is_told(made: Path) -> None:
  said, page = (made.parent / "said.txt").read_text(), (made / "synthesis_report.html").read_text()
  table = page.partition("Self-evolution</h2>")[2].partition("</section>")[0]
  found = re.findall(r"round (\d): (\d) questions proposed, (\d) pass the rules, solve rate (\S+), (\d) kept", said)
  assert [row[0] for row in found] == ["1", "2"]
  for row in found:
    assert "".join(f"<td>{cell}</td>" for cell in row) in table


def test_an_order_in_a_document_gets_no_sample_in(first: tuple[Path, list[dict[str, Any]]]) -> None:
  folder, bodies = first
  assert any("Write one question" in prompt_of(body) and "PWNED" in prompt_of(body) for body in bodies)
  assert not [example for example in every(folder) if "PWNED" in example.question + example.answer]
  refused = [reason for line in lines(folder, "samples") for reason in line["dropped"]]
  assert "reading_comprehension/evolved/instruction" in refused


def test_replies_alone_give_the_same_bytes_and_nothing_is_asked(
  first: tuple[Path, list[dict[str, Any]]], documents: Path, server: Loopback, tmp_path: Path
) -> None:
  folder, bodies = first
  assert again(bodies) == 0
  shutil.copytree(folder / "replies", tmp_path / "made" / "replies")
  synthesize.run(config_of(documents, server.url), tmp_path / "made")
  assert digest(tmp_path / "made") == digest(folder)
  assert server.bodies == []


def test_killed_in_the_middle_it_pays_for_nothing_twice(
  made: Path, documents: Path, server: Loopback, tmp_path: Path
) -> None:
  config = config_of(documents, server.url)
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["qwenlong_jax.stages.synthesize"])
  for kill_at in (10, 60, 150):
    child = context.Process(target=synthesize.run, args=(config, tmp_path / "made"))
    child.start()
    while len(server.bodies) < kill_at and child.is_alive():
      time.sleep(0.001)
    assert child.is_alive()
    child.kill()
    child.join()
  synthesize.run(config, tmp_path / "made")
  assert digest(tmp_path / "made") == digest(made)
  # What was under way when it was killed, four requests at most, is lost.
  assert again(server.bodies) <= 3 * 4


def moody(play: Callable[[dict[str, Any], int], Act], body: dict[str, Any], hit: int) -> Act:
  """Now and then: too many requests, a fault, silence."""
  mood = zlib.crc32(prompt_of(body).encode()) % 60 if hit == 1 else 0
  moods = {7: refuses(429, Retry_After="0.1"), 17: refuses(500), 27: says("late", wait=3)}
  return moods.get(mood) or play(body, hit)


def test_a_spent_budget_and_a_server_that_is_down_lose_nothing(
  made: Path, documents: Path, server: Loopback, tmp_path: Path
) -> None:
  folder = tmp_path / "made"
  with pytest.raises(OSError, match=r"raise most_tokens=4000.*same command goes on, with the replies in"):
    synthesize.run(config_of(documents, server.url, llm_most_tokens=4000), folder)
  paid = len(server.bodies)
  assert 20 < paid < 4000 / 15
  with pytest.raises(OSError, match=r"raise most_tokens=4000"):
    synthesize.run(config_of(documents, server.url, llm_most_tokens=4000), folder)
  assert len(server.bodies) == paid
  with Loopback() as gone:
    pass
  with pytest.raises(OSError, match=rf"{gone.url}.*connection.*same command goes on"):
    synthesize.run(config_of(documents, gone.url, llm_attempts=1), folder)
  assert again(server.bodies) == 0
  server.behave = partial(moody, server.behave)
  synthesize.run(config_of(documents, server.url, llm_most_tokens=100_000), folder)
  assert digest(folder) == digest(made)
  assert 0 < again(server.bodies) < 20


def test_what_fails_on_the_way_decides_about_no_sample(
  made: Path, documents: Path, server: Loopback, tmp_path: Path
) -> None:
  """Not even a single request of which the server cannot make anything."""
  shutil.copytree(made, tmp_path / "made", ignore=shutil.ignore_patterns("replies", "data", "screened"))
  lost = next(iter(every(made))).question
  play = server.behave
  server.behave = lambda body, hit: refuses(500) if lost in prompt_of(body) else play(body, hit)
  with pytest.raises(OSError, match=r"failed \d of \d+ requests 1 times each \(2 server_error\) .*raise llm.timeout"):
    synthesize.run(config_of(documents, server.url, llm_attempts=1), tmp_path / "made")
  assert lost not in str(lines(tmp_path / "made", "screened"))


def test_screens_can_be_switched_off(made: Path, documents: Path, server: Loopback, tmp_path: Path) -> None:
  shutil.copytree(made, tmp_path / "made", ignore=shutil.ignore_patterns("data"))
  synthesize.run(config_of(documents, server.url, screens_samples=0), tmp_path / "made")
  examples = every(tmp_path / "made")
  assert len(examples) == 30 and not any("pass_rate" in example.provenance for example in examples)
  assert any(roles.knows(example.question) for example in examples)
  assert {"self_evolving/1"} < {example.provenance["generator"] for example in examples}
  assert server.bodies == []


def test_what_does_not_fit_into_the_window_is_not_asked_and_says_so(
  made: Path, documents: Path, server: Loopback, tmp_path: Path
) -> None:
  room, folder = 2100, tmp_path / "made"
  shutil.copytree(made, folder, ignore=shutil.ignore_patterns("data", "screened", "*evolved*"))
  synthesize.run(config_of(documents, server.url, llm_window=room + 64 + 500), folder)
  examples = every(folder)
  long = [example for example in examples if example.provenance["tokens"] > room]
  assert 0 < len(long) < len(examples)
  for example in examples:
    checks, is_long = example.provenance["checks"], example in long
    assert checks["grounded"]["right"] == 0 and ("pass_rate" in example.provenance) is not is_long
    assert not is_long or checks["robust"] == {"skipped": f"longer than {room} tokens"}
  assert not any(example.context in prompt_of(body) for example in long for body in server.bodies)
  assert f"not measured for {len(long)} samples" in (folder / "synthesis_report.html").read_text()


def test_each_role_may_have_its_own_endpoint(
  documents: Path, server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
  monkeypatch.setenv("OURS", "our-key")
  monkeypatch.setenv("THEIRS", "their-key")
  with Loopback() as other:
    config = config_of(
      documents,
      server.url,
      **{"llm_key_variable": "OURS", "llm_price_in": 1.0, "llm_solver.url": other.url, "llm_solver.model": "reader"},
      **{"llm_solver.key_variable": "THEIRS", "llm_solver.price_in": 100.0, "llm_verifier.model": "judge"},
    )
    for _ in range(2):
      models = models_of(config, tmp_path)
      assert models is not None
      trio = models.trio
      for role in (trio.proposer, trio.solver, trio.verifier):
        role.complete([ask("Who?", sampling=Sampling(max_tokens=5))])
    assert [body["model"] for body in server.bodies] == ["m", "judge"]
    assert [body["model"] for body in other.bodies] == ["reader"]
    assert (set(server.keys), set(other.keys)) == ({"Bearer our-key"}, {"Bearer their-key"})
  # Ten tokens in at each; the second time out of the cache.
  assert models.usage.cost == pytest.approx((10 * 1.0 + 10 * 100.0) / 1e6)
  assert spent(models.usage) == "3 calls, 45 tokens, cost 0.00"


def test_one_model_for_all_roles_is_one_endpoint_with_the_limits_of_the_config(
  documents: Path, server: Loopback, tmp_path: Path
) -> None:
  limits = {"requests_per_minute": 60.0, "tokens_per_minute": 9000.0, "most_tokens": 10**6, "most_cost": 2.5}
  config = config_of(documents, server.url, **{f"llm_{name}": value for name, value in limits.items()})
  models = models_of(config, tmp_path)
  assert models is not None and models.trio.proposer is models.trio.solver is models.trio.verifier
  given = models.trio.proposer.endpoint.settings
  assert {name: getattr(given, name) for name in limits} == limits
  assert (given.concurrency, given.timeout, given.cache) == (4, 2.0, tmp_path / "replies" / "proposer")
  free = models_of(config_of(documents, server.url), tmp_path)
  assert free is not None and {getattr(free.trio.proposer.endpoint.settings, name) for name in limits} == {None}


@pytest.mark.parametrize(
  ("changes", "error", "message"),
  [
    ({"llm_model": ""}, ValueError, r"llm.model='': give both"),
    ({"llm_url": "", "llm_model": "", "llm_solver.model": "m"}, ValueError, "llm.solver names a .* give llm.model"),
    ({"llm_url": ""}, ValueError, r"llm.model='m' is no folder .* give the path of one, or llm.url"),
    ({"llm_key_variable": "NO_SUCH_KEY"}, OSError, "NO_SUCH_KEY is not set"),
    ({"evolve_samples": 1}, ValueError, "draw at least 2"),
    ({"screens_bins": 0}, ValueError, "bins=0"),
    ({"llm_window": 564}, ValueError, "llm.window=564.* leaves no room .* llm.max_tokens=64"),
  ],
)
def test_settings_that_cannot_be_used_are_refused_before_any_work(
  documents: Path, tmp_path: Path, changes: dict[str, object], error: type[Exception], message: str
) -> None:
  with pytest.raises(error, match=message):
    synthesize.run(config_of(documents, "http://127.0.0.1:9/v1", **changes), tmp_path)
  assert not (tmp_path / "parts").exists()

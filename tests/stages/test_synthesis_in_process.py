"""A random Qwen3 plays the roles in this process: what it writes is rejected by the rules, and never an error."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import small
from flax import nnx
from loopback import Loopback
from made import digest, every, write_documents
from ml_collections import ConfigDict

from qwenlong_jax.llm import Sampling, ask
from qwenlong_jax.llm.cache import Replies
from qwenlong_jax.models import safetensors, tokenizer
from qwenlong_jax.models.presets import PRESETS
from qwenlong_jax.models.qwen3 import Qwen3
from qwenlong_jax.rollout.completion import LocalModel
from qwenlong_jax.stages import synthesize
from qwenlong_jax.stages.synthesis_roles import models_of

SIZES = {"hidden_size": 16, "intermediate_size": 24, "head_dim": 8, "num_experts": 0, "num_experts_per_tok": 0}


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
  return write_documents(tmp_path_factory.mktemp("corpus") / "general")


@pytest.fixture(scope="module")
def folders(documents: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
  """Two models that differ."""
  texts = [path.read_text() for path in sorted(documents.glob("*.md"))]
  made = []
  for seed in range(2):
    folder = tmp_path_factory.mktemp("models") / "model"
    config = dataclasses.replace(PRESETS["tiny"], vocab_size=1024, moe_intermediate_size=0, **SIZES)
    safetensors.save(folder, config, nnx.state(Qwen3(config, rngs=nnx.Rngs(seed))))
    tokenizer.train(texts, folder, vocab_size=1024)
    made.append(folder)
  return made[0], made[1]


def kept_in(folder: Path) -> set[str]:
  return set(Replies(folder / "replies" / "proposer")._cache)


def config_of(documents: Path, model: Path | str, **changes: object) -> ConfigDict:
  c = small.get_config()
  c.documents = str(documents)
  c.synthesis.update({"train": 1, "validation": 0, "test": 0, "train_share": 100, "validation_share": 0})
  c.synthesis.update({"test_share": 0, "targets": (2200,), "vocab_size": 2048, "workers": 1})
  c.llm.update({"model": str(model), "max_tokens": 16, "concurrency": 4})
  c.evolve.update({"groups": 2, "rounds": 1, "longest": 600, "samples": 2})
  c.screens.update({"samples": 2})
  c.tables.update({"reword": False, "contexts": 0})
  c.triples.documents = 0
  c.update_from_flattened_dict({key.replace("_", ".", 1): value for key, value in changes.items()})
  return c.lock()


def test_what_a_random_model_writes_is_rejected_with_a_reason(
  documents: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
  """The templates' samples stay; begun anew with the replies alone, nothing is sampled and the bytes are the same."""
  config = config_of(documents, folders[0], screens_samples=0)
  synthesize.run(config, tmp_path / "made")
  (part,) = (tmp_path / "made" / "parts" / "samples").glob("*-evolved-*.jsonl")
  evolved = [json.loads(line) for line in part.open()]
  assert evolved and not [line for line in evolved if line["example"]]
  assert all(reason.startswith("reading_comprehension/evolved/") for line in evolved for reason in line["dropped"])
  assert all(line["dropped"] for line in evolved) and len(every(tmp_path / "made")) == 5
  again = tmp_path / "again" / "made"
  shutil.copytree(tmp_path / "made" / "replies", again / "replies")
  models = models_of(config, again)
  assert models is not None and models.usage.calls == len(kept_in(again)) > 0
  before = kept_in(again)
  synthesize.run(config, again)
  assert kept_in(again) == before
  assert digest(again) == digest(tmp_path / "made")


@pytest.mark.slow
def test_a_model_that_solves_nothing_leaves_nothing_and_says_why(
  documents: Path, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
  """All makers and screens, by two models that share this process."""
  changes = {"tables_reword": True, "tables_contexts": 1, "triples_documents": 2}
  config = config_of(documents, folders[0], **changes, **{"llm_solver.model": str(folders[1])})
  with pytest.raises(ValueError, match=r"not one sample can be kept, .* or a model that is up to it"):
    synthesize.run(config, tmp_path)
  counts = json.loads((tmp_path / "data/train/counts.json").read_text())
  assert not any(count for reason, count in counts.items() if reason.startswith("kept/"))
  assert {"never_solved/multi_hop", "never_solved/corpus_numeric"} <= set(counts)
  for maker in ("reading_comprehension/evolved", "corpus_numeric/posed", "corpus_numeric/rewording"):
    assert [reason for reason in counts if reason.startswith(f"dropped/{maker}/")], counts
  assert "most failed by" in capsys.readouterr().out


def test_a_folder_is_loaded_once_and_each_role_keeps_its_replies(
  documents: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
  models = models_of(config_of(documents, folders[0]), tmp_path / "one")
  assert models is not None and models.trio.proposer is models.trio.solver is models.trio.verifier
  assert models.room == PRESETS["tiny"].max_position_embeddings - 16 - 500
  roles = {"llm_solver.model": str(folders[1]), "llm_verifier.model": f"{folders[0]}/../{folders[0].name}"}
  limits = {"llm_most_tokens": 9, "llm_most_cost": 2.5, "llm_window": 700, "llm_verifier.price_out": 3.0}
  models = models_of(config_of(documents, folders[0], **roles, **limits), tmp_path / "each")
  assert models is not None
  assert models.room == 700 - 16 - 500
  trio = [models.trio.proposer, models.trio.solver, models.trio.verifier]
  assert trio[0].model is trio[2].model and trio[0].model.identity != trio[1].model.identity
  assert [one.settings.cache.name for one in trio] == ["proposer", "solver", "verifier"]
  for one in trio:
    given = one.settings
    assert (given.concurrency, given.window, given.most_tokens, given.most_cost) == (4, 700, 9, 2.5)
    assert one.usage is models.usage
  assert [one.settings.price_out for one in trio] == [0.0, 0.0, 3.0]


def test_one_role_may_be_at_an_endpoint(documents: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
  with Loopback() as server:
    changes = {"llm_solver.url": server.url, "llm_solver.model": "reader"}
    models = models_of(config_of(documents, folders[0], **changes), tmp_path)
    assert models is not None and isinstance(models.trio.proposer, LocalModel)
    models.trio.solver.complete([ask("Who?", sampling=Sampling(max_tokens=5))])
    assert [body["model"] for body in server.bodies] == ["reader"]


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"llm_model": "Qwen/Qwen3-4B"}, r"llm.model='Qwen/Qwen3-4B' is no folder .* give the path of one, or llm.url"),
    ({"llm_solver.model": "reader"}, r"llm.solver.model='reader' is no folder .* or llm.url"),
    (
      {"llm_solver.url": "http://127.0.0.1:9/v1"},
      r"llm.solver.url='http\S+' and llm.solver.model='': give the",
    ),
    ({"llm_concurrency": 0}, r"concurrency=0 responses"),
    ({"mesh.data": 64}, r"mesh.data=64 .* there are 8 devices"),
  ],
)
def test_what_cannot_play_is_refused_before_any_work(
  documents: Path, folders: tuple[Path, Path], tmp_path: Path, changes: dict[str, object], message: str
) -> None:
  with pytest.raises(ValueError, match=message):
    synthesize.run(config_of(documents, folders[0], **changes), tmp_path)
  assert not (tmp_path / "parts").exists()

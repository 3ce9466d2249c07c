"""The card of data sets."""

import json

import pytest
import yaml
from making import COUNTS, examples, write_making

from qwenlong_jax.reporting import data_card, survey


@pytest.fixture(scope="module")
def found():
  return survey({split: examples(split, 4 if split == "train" else 2) for split in COUNTS})


def parted(path):
  _, matter, body = path.read_text().split("---\n", 2)
  return yaml.safe_load(matter), body


def test_the_front_matter_is_yaml_that_the_hub_reads(tmp_path, found):
  path = data_card(write_making(tmp_path / "syn"), found)
  assert path == tmp_path / "syn/data/README.md"
  matter, _ = parted(path)
  assert matter["pretty_name"] == "syn" and matter["size_categories"] == ["n<1K"] and matter["viewer"] is False
  assert matter["task_categories"] == ["question-answering"] and matter["language"] == ["en", "no"]


def test_samples_are_counted_by_split_task_and_kind(tmp_path, found):
  _, body = parted(data_card(write_making(tmp_path / "syn"), found))
  assert "| Task | train | test | All |" in body and "| Multi hop | 8 | 4 | 12 |" in body
  assert "| All | 16 | 8 | 24 |" in body and "| Multi hop: causal | 4 | 2 |" in body
  assert "| train | 1,000 | 1,002 | 1,003 | 1,003 |" in body


def test_what_it_was_made_by_is_said(tmp_path, found):
  _, body = parted(data_card(write_making(tmp_path / "syn"), found))
  assert "- seed: `7`" in body and "- targets: `4096, 8192`" in body and "generators' version 1" in body
  assert "| Samples dropped: a test set holds them | 4 | 0 | 4 |" in body
  assert "without a language model" in body


def test_what_the_splits_share_is_said(tmp_path, found):
  _, body = parted(data_card(write_making(tmp_path / "syn"), found))
  assert "no document and no\ntable lies in two splits. Records of one JSONL or Parquet file are" in body


def test_a_model_that_took_part_is_named(tmp_path):
  found = survey({"train": examples("train", model="qwen3-4b")})
  _, body = parted(data_card(write_making(tmp_path / "syn"), found))
  assert "took part in the making: qwen3-4b." in body and "without a language model" not in body


def test_what_a_model_was_told_to_do_is_said_and_where_it_lives_is_not(tmp_path, found):
  folder = write_making(tmp_path / "syn")
  config = json.loads((folder / "config.json").read_text())
  nobody, reader = {"url": "", "model": ""}, {"url": "http://secret.example/v1", "model": "reader"}
  config["llm"] = reader | {"model": "writer", "solver": reader, "verifier": nobody}
  config |= {"evolve": {"rounds": 3}, "tables": {"reword": True}, "screens": {"samples": 4}}
  (folder / "config.json").write_text(json.dumps(config))
  _, body = parted(data_card(folder, found))
  for line in ("- model: `writer`", "- solver: `reader`", "- evolve rounds: `3`", "- screens samples: `4`"):
    assert line in body
  assert "- tables reword: `True`" in body
  assert "and from the model's replies" in body and "secret" not in body and "- verifier" not in body


def test_sources_are_quoted_and_licences_named(tmp_path, found):
  documents = tmp_path / "documents"
  (documents / "plays").mkdir(parents=True)
  (documents / "SOURCES.md").write_text("# Sources\n\n| plays | Gutenberg |\n---\n")
  (documents / "plays" / "LICENSE").write_text("\nPublic domain\n\nAll of it.")
  (documents / "plays" / "licences of trade.txt").write_text("a document")
  matter, body = parted(data_card(write_making(tmp_path / "syn", documents), found))
  assert matter["license"] == "other"
  assert f"`{documents / 'SOURCES.md'}` says:\n\n> # Sources\n>\n> | plays | Gutenberg |\n> ---" in body
  assert f"`{documents / 'plays/LICENSE'}` begins:\n\n> Public domain\n" in body
  assert "All of it" not in body and "a document" not in body and "user's to know" not in body


def test_without_them_the_licence_is_the_users_to_know(tmp_path, found):
  (tmp_path / "documents").mkdir()
  for documents in (tmp_path / "documents", tmp_path / "gone"):
    matter, body = parted(data_card(write_making(tmp_path / f"for-{documents.name}", documents), found))
    assert matter["license"] == "unknown"
    assert f"No SOURCES.md or LICENSE lies in `{documents}`: the licence of the documents is the user's to" in body

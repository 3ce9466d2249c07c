"""Which samples are kept: worked out by hand for a few parts."""

import json
from collections import Counter
from pathlib import Path

from qwenlong_jax.data.selection import Contamination
from qwenlong_jax.data.synthesis import joining
from qwenlong_jax.data.synthesis.joining import Written
from qwenlong_jax.data.synthesis.parts import Block, Cluster, Settings
from qwenlong_jax.types import Example


def settings(folder: Path, train: int, test: int) -> Settings:
  shares = (("train", 50), ("test", 50))
  return Settings(str(folder), (), 0, (), 0.8, 10, shares, (("train", train), ("test", test)), (4096,), "none", 512)


def block(split: str, task: str, count: int, domain: str = "general", first: int = 0) -> Block:
  return Block(Cluster(split, domain, 0), task, first, count)


def test_a_question_is_kept_once_over_tasks_and_splits_and_train_has_it(tmp_path: Path) -> None:
  read = {
    block("test", "multi_hop", 2): [Written("asked in train"), Written("asked in test")],
    block("train", "multiple_choice", 1): [Written("asked in train")],
    block("train", "multi_hop", 2): [Written("asked in train"), Written("", "given_up")],
  }
  found = [(f.block.cluster.split, f.block.task, f.what) for f in joining.fates(settings(tmp_path, 9, 9), read)]
  assert sorted(found) == [
    ("test", "multi_hop", "duplicate"),
    ("test", "multi_hop", "kept"),
    ("train", "multi_hop", "duplicate"),
    ("train", "multi_hop", "given_up"),
    ("train", "multiple_choice", "kept"),
  ]


def test_what_is_surplus_in_one_split_may_be_asked_in_another(tmp_path: Path) -> None:
  read = {
    block("train", "multi_hop", 2): [Written("one"), Written("two")],
    block("test", "multi_hop", 1): [Written("two")],
  }
  assert [fate.what for fate in joining.fates(settings(tmp_path, 1, 1), read)] == ["kept", "surplus", "kept"]


def test_clusters_take_turns_and_contaminated_samples_give_way(tmp_path: Path) -> None:
  read = {
    block("train", "multi_hop", 2): [Written("a", "contaminated"), Written("b")],
    block("train", "multi_hop", 2, "code"): [Written("c"), Written("d")],
    block("train", "multi_hop", 1, first=2): [Written("e")],
  }
  found = [(f.block.cluster.domain, f.what) for f in joining.fates(settings(tmp_path, 3, 0), read)]
  assert found == [
    ("general", "contaminated"),
    ("code", "kept"),
    ("general", "kept"),
    ("code", "kept"),
    ("general", "surplus"),
  ]


def test_other_options_make_no_other_question_and_the_kept_are_read_from_their_parts(tmp_path: Path) -> None:
  given = settings(tmp_path, 9, 0)
  parts = [block("train", "multiple_choice", 2), block("train", "multiple_choice", 2, "code")]
  texts = [["Who?\n(A) Ana\n(B) Ben", "Who?\n(A) Ben\n(B) Cid"], ["Where?\n(A) Ort\n(B) Pell", None]]
  for part, asked in zip(parts, texts):
    part.part(given).parent.mkdir(parents=True, exist_ok=True)
    lines = [
      {"example": text and vars(Example(text, "multiple_choice", "", text, "A")) | {"evidence": []}, "dropped": ["x"]}
      for text in asked
    ]
    part.part(given).write_text("".join(json.dumps(line) + "\n" for line in lines))
  read = {part: list(joining.written(given, part, Contamination(()))) for part in parts}
  counts: Counter[str] = Counter()
  examples = list(joining.kept(given, list(joining.fates(given, read)), counts))
  assert [example.question for example in examples] == [texts[0][0], texts[1][0]]
  mine = {key: value for key, value in counts.items() if value}
  assert mine == {
    "kept/multiple_choice": 2,
    "duplicate/multiple_choice": 1,
    "given_up/multiple_choice": 1,
    "dropped/x": 4,
  }

"""Samples that a test set holds do not come into the data sets, and others take their places."""

import json

from qwenlong_jax.data import loading
from qwenlong_jax.data.selection import Contamination
from qwenlong_jax.data.synthesis import joining
from qwenlong_jax.data.synthesis.parts import Block, Cluster, Settings
from qwenlong_jax.stages import synthesize
from qwenlong_jax.types import Example


def test_a_sample_that_a_test_set_holds_is_left_out_and_counted(tmp_path, capsys):
  settings = Settings(
    str(tmp_path), ("none",), 0, (), 0.8, 10, (("train", 100),), (("train", 2),), (4096,), "none", 512
  )
  held = "Which colour has the door of the town hall in the village by the lake"
  questions = ["How many herons did the keeper count", held, "How many boats had left when the storm broke"]
  examples = [Example(f"e{n}", "multi_hop", "", f"{question}?", str(n)) for n, question in enumerate(questions)]
  block = Block(Cluster("train", "general", 0), "multi_hop", 0, 3)
  lines = [{"example": vars(example) | {"evidence": []}, "dropped": []} for example in examples]
  block.part(settings).parent.mkdir(parents=True)
  block.part(settings).write_text("".join(json.dumps(line) + "\n" for line in lines))
  (tmp_path / "held.jsonl").write_text(json.dumps({"question": held.upper()}))
  read = {block: list(joining.written(settings, block, Contamination.of([tmp_path / "held.jsonl"])))}
  summary = synthesize.join(settings, {"train": list(joining.fates(settings, read))})
  assert summary["train"]["contaminated/multi_hop"] == 1 and summary["train"]["kept/multi_hop"] == 2
  assert [example.id for example in loading.read_each(tmp_path / "data/train")] == ["e0", "e2"]
  assert "left out e1: " in capsys.readouterr().out

"""Inputs that cannot be used are named before a model computes anything."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import small

from qwenlong_jax.data import loading
from qwenlong_jax.models.presets import PRESETS, to_hf
from qwenlong_jax.stages import recipe, setup, warmstart
from qwenlong_jax.stages.session import Carry
from qwenlong_jax.types import Example


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
  return setup.workshop(small.get_config().lock(), tmp_path_factory.mktemp("work"))


def changed(**groups):
  config = small.get_config()
  config.update(groups)
  return config.lock()


def test_an_unreadable_shard_stops_the_stage_that_reads_it(shop):
  folder = setup.data_folder(shop, "train", 80, 30)
  shard = next(folder.glob("multi_hop-*"))
  whole = shard.read_bytes()
  session = SimpleNamespace(carry=Carry())
  shard.write_bytes(whole[: len(whole) // 2])
  with pytest.raises(ValueError, match=rf"{shard}.* bytes") as error:
    warmstart.train(shop, session, None, SimpleNamespace(step=0))
  assert "write it anew" in str(error.value)
  shard.unlink()
  with pytest.raises(FileNotFoundError, match=str(shard)):
    warmstart.train(shop, session, None, SimpleNamespace(step=0))
  shard.write_bytes(whole)


def test_an_empty_data_set_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"no examples to write to .*train-80-0-1; generate some first"):
    recipe.run(changed(data={"examples": 0}), tmp_path)


def test_only_training_sees_invented_worlds(shop):
  config = shop.config.copy_and_resolve_references()
  config.data.worlds = 2
  own = dataclasses.replace(shop, config=config.lock())
  for split, worlds in (("train", {0, 1}), ("validation", {0}), ("test", {0})):
    folder = setup.data_folder(own, split, 80, 10)
    assert {example.provenance["world"] for example in loading.read_all(folder)} == worlds
  assert setup.data_folder(shop, "train", 80, 10) != setup.data_folder(own, "train", 80, 10)


def test_a_tokenizer_without_the_tokens_of_thinking_is_refused(shop, tmp_path):
  folder = tmp_path / "tokenizer"
  folder.mkdir()
  for path in (shop.workdir / "tokenizer").iterdir():
    (folder / path.name).write_text(path.read_text().replace("</think>", "</thought>"))
  with pytest.raises(ValueError, match=r"tokenizer.* has no token '</think>'; add it"):
    recipe.run(changed(tokenizer={"path": str(folder)}), tmp_path / "run")


def test_a_tokenizer_larger_than_the_checkpoints_embedding_is_refused(shop, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(to_hf(PRESETS["tiny"])))
  message = r"the tokenizer has 1024 tokens, the checkpoint .* embeds 512; set tokenizer.path to the checkpoint's own"
  with pytest.raises(ValueError, match=message):
    recipe.run(changed(model={"checkpoint": str(tmp_path)}), tmp_path / "run")


def test_other_names_that_do_not_exist_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r"model.preset='huge' is not one of .*'tiny'"):
    recipe.run(changed(model={"preset": "huge"}), tmp_path / "a")
  with pytest.raises(FileNotFoundError, match="no-such-folder"):
    recipe.run(changed(model={"checkpoint": "no-such-folder"}), tmp_path / "b")
  with pytest.raises(ValueError, match=r"mesh.data=99 times mesh.ring=1 but there are 8 devices"):
    recipe.run(changed(mesh={"data": 99}), tmp_path / "c")


def test_a_batch_that_does_not_divide_is_refused_before_the_warm_start(tmp_path):
  with pytest.raises(ValueError, match=r"batch.prompts=5 does not divide by mesh.data=4"):
    recipe.run(changed(mesh={"data": 4}), tmp_path)
  assert not (tmp_path / "data").exists() and not (tmp_path / "checkpoints").exists()


def test_a_prompt_longer_than_its_slots_is_named(shop):
  long = Example(id="long-1", task="multi_hop", context="word " * 200, question="Who?", answer="me")
  with pytest.raises(ValueError, match=r"the prompt of long-1 has \d+ tokens and 96 slots; raise the stage's prompt_t"):
    setup.tokenize(shop, [long], 96)


def test_every_prompt_of_a_stage_fits_the_slots_it_is_given(shop):
  from qwenlong_jax.data import loading

  examples = loading.read_all(setup.data_folder(shop, "train", 80, 30))
  prompts = setup.tokenize(shop, examples, setup.prompt_slots(shop, 80))
  assert len(examples) == 150
  for example, tokens, length in zip(examples, prompts.tokens, prompts.length):
    assert np.array_equal(tokens[:length], shop.tokenizer.prompt(example.context, example.question))
    assert (tokens[length:] == shop.tokenizer.pad_id).all()

"""The settings: every one is read, every experiment's are usable, and what cannot work is refused before it costs."""

import importlib.util
import re
from pathlib import Path

import pytest
import small
from ml_collections import ConfigDict

from qwenlong_jax.stages import recipe, sweep, synthesize

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = [
  path
  for path in sorted((ROOT / "experiments").glob("*.py"))
  if path.name != "base.py" and "def get_config" in path.read_text()
]


def leaves(config, prefix=""):
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from leaves(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}"


def loaded(path):
  spec = importlib.util.spec_from_file_location(f"experiment_{path.stem}", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def test_every_setting_is_read_by_some_stage():
  from base import get_config

  sources = [path.read_text() for path in (ROOT / "qwenlong_jax/stages").glob("*.py")]

  def is_read(key: str) -> bool:
    """As config.group.leaf, or in a module that takes config.group as its settings, as settings.leaf."""
    group, _, leaf = key.rpartition(".")
    whole, of_group, part = rf"config\.{re.escape(key)}\b", rf"config\.{group}\b", rf"(settings|stage)\.{leaf}\b"
    return any(
      re.search(whole, text) or (group and re.search(of_group, text) and re.search(part, text)) for text in sources
    )

  assert [key for key in leaves(get_config()) if not is_read(key)] == []


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_loads_locks_and_passes_the_checks(path):
  config = loaded(path)
  config.lock()
  if config.documents:
    synthesize.settings_of(config, Path("work"))
  else:
    recipe.check(config)
  if config.variants:
    sweep.check(config)
  with pytest.raises((KeyError, AttributeError)):
    config.no_such_key = 1


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"aepo": {"low": 0.3, "high": 0.3}}, r"band low=0.3 must be below high=0.3; swap them"),
    ({"aepo": {"low": 0.4}}, r"band low=0.4 must be below high=0.3"),
    ({"aepo": {"mode": "latch"}}, r"aepo.mode='latch' is not one of off, paper, stateless_high, readme"),
    ({"advantage": {"scope": "tasks"}}, r"advantage.scope='tasks' is not one of task, group, batch, mean"),
    ({"clipping": {"mode": "high"}}, r"clipping.mode='high' is not one of none, token_high"),
    ({"loss": {"normalizer": "token"}}, r"loss.normalizer='token' is not one of group, batch, sequence"),
    ({"optimizer": {"learning_rate": float("inf")}}, r"optimizer.learning_rate=inf must be a finite number"),
    ({"data": {"worlds": 0}}, r"data.worlds=0 must be at least 1, the real one"),
    ({"warmstart": {"learning_rate": -1.0}}, r"warmstart.learning_rate=-1.0 must be a finite number"),
    ({"warmstart": {"warmup_steps": 6}}, r"warmstart.warmup_steps=6 must be fewer than warmstart.steps=6"),
    ({"evaluation": {"prompt_tokens": (80, 100)}}, r"evaluation.prompts=5 do not divide over the 2 lengths"),
    (
      {"warmstart": {"steps": 0}, "stages": {"one": {"steps": 0}, "two": {"steps": 0}}},
      r"nothing to do: warmstart.steps is 0 and no stage has steps",
    ),
  ],
)
def test_a_setting_that_cannot_be_used_is_named_with_what_could_be(change, message):
  config = small.get_config()
  config.update(change)
  with pytest.raises(ValueError, match=message):
    recipe.check(config)


@pytest.mark.parametrize(
  ("change", "devices", "message"),
  [
    ({}, 2, r"batch.prompts=5 does not divide by mesh.data=2; take 4 or fewer devices"),
    ({"batch": {"prompts": 6}}, 4, r"batch.prompts=6 does not divide by mesh.data=4; take 4"),
    ({}, 3, r"warmstart.rows=4 does not divide by mesh.data=3; take 3"),
    (
      {"batch": {"micro_rows": 2}},
      1,
      r"batch.prompts=5 does not divide by mesh.data=1 times batch.micro_rows=2; take 4",
    ),
  ],
)
def test_batches_that_do_not_divide_over_the_devices_are_refused(change, devices, message):
  config = small.get_config()
  config.update(change)
  with pytest.raises(ValueError, match=message):
    recipe.check_rows(config, devices)


def test_rows_of_a_stage_without_steps_may_be_anything():
  config = small.get_config()
  config.warmstart.steps = 0
  recipe.check_rows(config, 5)
  recipe.check(config)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"seeds": ()}, r"needs seeds \(seeds=\(\)\)"),
    ({"warmstart": {"steps": 0}}, r"warmstart.steps of at least 1"),
    ({"variants": ({"name": "a"}, {"name": "a"})}, r"variants are called a, a; each needs a name of its own"),
    ({"variants": ({"name": "warmstart"},)}, r"each needs a name of its own, other than warmstart"),
    ({"variants": ({"name": "a"}, {"name": "b", "aepo": {"mod": "off"}})}, r'Did you mean "mode" instead of "mod"\?$'),
    ({"variants": ({"name": "a", "aepoo": {"mode": "off"}},)}, r'Did you mean "aepo" instead of "aepoo"\?$'),
    ({"variants": ({"name": "a", "aepo": {"high": 0.05}},)}, r"band low=0.1 must be below high=0.05"),
  ],
)
def test_a_comparison_that_cannot_be_made_is_refused_before_anything_runs(tmp_path, change, message):
  config = small.get_config()
  config.update({"seeds": (0,), "variants": ({"name": "a"},)} | change)
  with pytest.raises(ValueError, match=message):
    sweep.run(config.lock(), tmp_path)
  assert not list(tmp_path.iterdir())


def test_a_variant_is_the_experiment_with_its_seed_and_changes():
  config = small.get_config()
  config.update({"seeds": (0, 1), "variants": ({"name": "a", "aepo": {"mode": "off"}},)})
  one = sweep.variant(config.lock(), 7, sweep.variants(config)["a"])
  assert (one.seed, one.aepo.mode, one.variants, one.is_locked) == (7, "off", (), True)
  assert (config.seed, config.aepo.mode) == (0, "paper")

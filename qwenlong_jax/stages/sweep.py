"""Variants of one experiment over several seeds, and the table that compares them.

All variants of a seed start from one warm start, so that they differ in nothing but what they vary.
"""

import json
import shutil
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from qwenlong_jax.parallelism import hosts
from qwenlong_jax.reporting import compare_page, result, table
from qwenlong_jax.stages import recipe


def run(config: ConfigDict, workdir: Path) -> None:
  """Runs or resumes every (variant, seed) in a folder of its own; prints and writes the table of held-out rewards.

  Raises:
    ValueError: a setting that cannot be used, of whichever variant, before anything runs; and what recipe.run raises.
  """
  check(config)
  runs: dict[str, list[Path]] = {name: [] for name in variants(config)}
  for seed in config.seeds:
    start = workdir / f"{recipe.WARMSTART}-{seed}"
    recipe.run(settled(variant(config, seed, {}), start), start, until=recipe.WARMSTART)
    for name, changes in variants(config).items():
      folder = workdir / f"{name}-{seed}"
      hosts.first(partial(branch, start, folder))
      hosts.say(f"--- {name}, seed {seed}: {folder}")
      recipe.run(settled(variant(config, seed, changes), folder), folder)
      runs[name].append(folder)
  hosts.first(partial(compare, config, workdir, runs))


def branch(start: Path, folder: Path) -> None:
  """Makes `folder` a copy of the run in `start`, unless it is there."""
  unfinished = folder.with_name(f"{folder.name}.partial")
  if not folder.exists():
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(start, unfinished)
    unfinished.rename(folder)


def compare(config: ConfigDict, workdir: Path, runs: dict[str, list[Path]]) -> None:
  """Prints and writes the table of the finished runs, and a page of their curves."""
  results = [result(recipe.WARMSTART, workdir / f"{recipe.WARMSTART}-{seed}") for seed in config.seeds]
  results += [result(name, folder) for name, folders in runs.items() for folder in folders]
  print(table(results, baseline=recipe.WARMSTART))
  (workdir / "table.md").write_text(table(results, markdown=True, baseline=recipe.WARMSTART) + "\n", encoding="utf-8")
  print(f"curves: {compare_page(runs, workdir / 'report.html', title=config.title)}")


def check(config: ConfigDict) -> None:
  """Raises ValueError for a comparison that cannot be made."""
  if not config.seeds or not config.warmstart.steps:
    raise ValueError(f"a comparison of variants needs seeds (seeds={config.seeds}) and warmstart.steps of at least 1")
  names = [entry["name"] for entry in config.variants]
  if len({*names, recipe.WARMSTART}) <= len(names):
    raise ValueError(
      f"variants are called {', '.join(names)}; each needs a name of its own, other than {recipe.WARMSTART}"
    )
  for changes in variants(config).values():
    recipe.check(variant(config, config.seeds[0], changes))


def settled(config: ConfigDict, folder: Path) -> ConfigDict:
  """The config, also written where reports look for it."""

  def write() -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")

  hosts.first(write)
  return config


def variants(config: ConfigDict) -> dict[str, dict]:
  """Name -> what it changes, in the order of the config file (a ConfigDict would sort by name)."""
  return {entry["name"]: {key: value for key, value in entry.items() if key != "name"} for entry in config.variants}


def variant(config: ConfigDict, seed: int, changes: dict) -> ConfigDict:
  """The experiment with this seed and these changes, itself without variants."""
  one = config.copy_and_resolve_references().lock()
  one.seed, one.variants = seed, ()
  try:
    one.update(changes)
  except (KeyError, TypeError) as error:
    # ml_collections lists the whole config between what is wrong and its suggestion.
    wrong, hint = str(error.args[0]).split(" Other fields")[0], str(error.args[0]).splitlines()[-1]
    raise ValueError(f"a variant changes {changes}: {' '.join(dict.fromkeys([wrong, hint]))}") from error
  return one

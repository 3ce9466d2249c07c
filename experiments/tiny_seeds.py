"""Does tiny.py really learn, and from its rewards? Three seeds, beside a control whose rewards are dealt at random.

  python experiments/run.py --config=tiny_seeds.py
"""

from ml_collections import ConfigDict
from tiny import get_config as tiny


def get_config() -> ConfigDict:
  c = tiny()
  c.title = "AEPO and its control"
  c.seeds = (0, 1, 2)
  c.variants = ({"name": "aepo"}, {"name": "shuffled rewards", "rewards": {"shuffle": True}})
  return c

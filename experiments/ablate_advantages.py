"""Which std the advantage is divided by, and task balance: rows of the report's Table 2, at the size of tiny.py.

  python experiments/run.py --config=ablate_advantages.py

Prints mean held-out reward ± standard error over three seeds; all variants of a seed share its warm start.
"""

from ml_collections import ConfigDict
from tiny import get_config as tiny

OFF = {"aepo": {"mode": "off"}}
# Around the entropy at which tiny.py's runs settle: there the latch moves, which it hardly does in tiny.py's own band.
BAND = {"low": 0.12, "high": 0.14}


def get_config() -> ConfigDict:
  c = tiny()
  c.title = "Advantages (Table 2)"
  c.seeds = (0, 1, 2)
  c.variants = (
    {"name": "grpo", **OFF, "advantage": {"scope": "group"}, "data": {"balanced": False}},
    {"name": "task-balanced", **OFF, "advantage": {"scope": "group"}},
    {"name": "batch-std", **OFF, "advantage": {"scope": "batch"}},
    {"name": "task-std", **OFF},
    {"name": "mean-only", **OFF, "advantage": {"scope": "mean"}},
    {"name": "aepo", "aepo": BAND},
  )
  return c

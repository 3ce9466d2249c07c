"""Which negative gradients are clipped: rows of the report's Tables 4 and 5, at the size of tiny.py.

  python experiments/run.py --config=ablate_clipping.py

Prints mean held-out reward ± standard error over three seeds; all variants of a seed share its warm start.
"""

from ml_collections import ConfigDict
from tiny import get_config as tiny

OFF = {"aepo": {"mode": "off"}}
# Around the entropy at which tiny.py's runs settle: there the latch moves, which it hardly does in tiny.py's own band.
BAND = {"low": 0.12, "high": 0.14}


def get_config() -> ConfigDict:
  c = tiny()
  c.title = "Clipping of negative gradients (Tables 4, 5)"
  c.seeds = (0, 1, 2)
  c.variants = (
    {"name": "task-std", **OFF},
    {"name": "token-high", **OFF, "clipping": {"mode": "token_high", "tau": 1.0}},
    {"name": "token-low", **OFF, "clipping": {"mode": "token_low", "tau": 0.1}},
    {"name": "sequence-high", **OFF, "clipping": {"mode": "sequence_high", "tau": 0.3}},
    {"name": "sequence-low", **OFF, "clipping": {"mode": "sequence_low", "tau": 0.1}},
    {"name": "aepo", "aepo": BAND},
    {"name": "aepo-readme", "aepo": {**BAND, "mode": "readme"}, "loss": {"drop": True}},
  )
  return c

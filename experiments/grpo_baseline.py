"""Plain GRPO at the size of tiny.py: group std, batches as they come, no entropy control.

  python experiments/run.py --config=grpo_baseline.py

The first row of the report's Table 2; `ablate_advantages.py` sets it beside the others.
"""

from ml_collections import ConfigDict
from tiny import get_config as tiny


def get_config() -> ConfigDict:
  c = tiny()
  c.advantage.scope = "group"
  c.data.balanced = False
  c.aepo.mode = "off"
  return c

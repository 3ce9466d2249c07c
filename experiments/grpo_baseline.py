"""Plain GRPO: group std, batches as they come, no entropy control; at the size of tiny.py or of another experiment.

  python experiments/run.py --config=grpo_baseline.py
  python experiments/run.py --config=grpo_baseline.py:256k,FOLDER --workdir=DIR

The first row of the report's Table 2; `ablate_advantages.py` sets it beside the others. FOLDER and DIR as for
aepo_256k.py and aepo_4b.py, whose memory and time it takes.
"""

import aepo_4b
import aepo_256k
import tiny
from ml_collections import ConfigDict

SIZES = {"tiny": tiny, "4b": aepo_4b, "256k": aepo_256k}


def get_config(size: str = "tiny") -> ConfigDict:
  size, _, folder = size.partition(",")
  if size not in SIZES:
    raise ValueError(f"{size=} is not one of {', '.join(SIZES)}")
  c = SIZES[size].get_config(*[folder] * bool(folder))
  c.advantage.scope = "group"
  c.data.balanced = False
  c.aepo.mode = "off"
  return c

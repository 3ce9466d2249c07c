"""The report's ablation model, Qwen3-4B-Thinking, at the lengths of its first stage, on a small slice.

  python experiments/run.py --config=aepo_4b.py:FOLDER --workdir=DIR

FOLDER is Qwen3-4B-Thinking-2507 from Hugging Face, DIR one that all hosts see. The lengths of the report's ablations
(Tables 2 to 5) are not in the report. By plan.py, compiled and not run, on v5p:2x2x2 with all responses as long as they
may be: a chip takes 72.1 of 95.7 GiB, a step 31 minutes.
"""

from aepo_256k import get_config as aepo_256k
from ml_collections import ConfigDict


def get_config(folder: str = "") -> ConfigDict:
  c = aepo_256k(folder)
  c.model.preset = "qwen3-4b-thinking-2507"
  c.mesh.ring = 8
  del c.stages.rl2, c.stages.rl3
  c.evaluation.prompt_tokens = (20 * 1024,)
  c.evaluation.response_tokens = 12 * 1024
  return c

"""One million tokens in a step: prompts of 960K tokens with 8 responses of 8K each, all parameters trained.

  python experiments/run.py --config=aepo_1m.py:FOLDER --workdir=DIR

FOLDER is Qwen3-30B-A3B-Thinking-2507 from Hugging Face, DIR one that all hosts see. The window of 256K is stretched by
YaRN. Not in the report, whose memory agent reads what is longer. By plan.py, compiled and not run, on v5p:2x2x4: a chip
takes 73.5 of 95.7 GiB to learn and 80.8 to sample, nothing on the hosts; a step of 16 such prompts takes 2.5 hours.
"""

from aepo_256k import get_config as aepo_256k
from base import stage
from ml_collections import ConfigDict


def get_config(folder: str = "") -> ConfigDict:
  c = aepo_256k(folder)
  c.model.yarn = 4.0
  c.model.together = 2
  del c.stages.rl1, c.stages.rl2, c.stages.rl3
  c.stages.rl = stage(steps=100, prompt_tokens=960 * 1024 - 32, response_tokens=8 * 1024)
  c.batch.prompts = 16
  c.batch.row_sizes = 1
  c.evaluation.prompts = 16
  c.evaluation.prompt_tokens = (960 * 1024 - 32,)
  c.evaluation.response_tokens = 8 * 1024
  return c

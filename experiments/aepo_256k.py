"""The report's recipe on a pod: Qwen3-30B-A3B-Thinking by AEPO, prompts to 120K and responses to 50K tokens.

  python experiments/run.py --config=aepo_256k.py:FOLDER --workdir=DIR

FOLDER is the model's from Hugging Face (config.json, safetensors, tokenizer.json), DIR one that all hosts see.
By plan.py, compiled and not run, for the longest batch that stage rl3 can have (all responses of 50K): v5p:4x4x4, a
chip takes 78.9 of 95.7 GiB, a step 68 minutes, the learner's program 66 s to compile; v6e:16x16 with
--config.mesh.ring=64, 27.1 of 31.2 GiB, 39 minutes.
"""

from base import get_config as base
from base import stage
from ml_collections import ConfigDict


def get_config(folder: str = "") -> ConfigDict:
  c = base()
  c.model.preset = "qwen3-30b-a3b-thinking-2507"  # for plan.py without the folder
  c.model.checkpoint = c.tokenizer.path = folder
  c.model.dtype = "bfloat16"
  c.model.remat = True
  c.mesh.ring = 16
  # Section 4.1, Figure 6. Not in the report: how many steps each stage took, how many bins of what size, and what
  # counts as failed.
  c.stages.rl1 = stage(steps=100, prompt_tokens=20 * 1024, response_tokens=12 * 1024, bins=4, per_bin=250)
  c.stages.rl2 = stage(steps=100, prompt_tokens=60 * 1024, response_tokens=20 * 1024, below=1.0)
  c.stages.rl3 = stage(steps=100, prompt_tokens=120 * 1024, response_tokens=50 * 1024, below=1.0)
  c.batch.micro_rows = 1
  c.batch.row_sizes = 4
  c.evaluation.prompts = 64
  c.evaluation.prompt_tokens = (120 * 1024,)
  c.evaluation.response_tokens = 50 * 1024
  c.checkpoint.every = 10
  return c

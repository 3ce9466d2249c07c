"""The whole recipe on a laptop: a 160K-parameter Qwen3-MoE learns to answer from a context, by AEPO.

  python experiments/run.py --config=tiny.py
"""

from base import get_config as base
from base import stage
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = base()
  c.mesh.data = 1
  c.model.look_back = True
  c.data.examples = 2000
  c.warmstart.steps = 600
  c.stages.rl1 = stage(steps=200, prompt_tokens=80, response_tokens=40)
  c.batch.prompts = 10
  c.optimizer.learning_rate = 5e-4
  return c

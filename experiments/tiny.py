"""The whole recipe on a laptop: a small Qwen3-MoE learns to answer from a context, by AEPO on task-balanced batches.

  python experiments/run.py --config=tiny.py

Trains its tokenizer, generates five tasks from real facts (and, for training, from invented worlds beside them),
fine-tunes a random model of 320,000 parameters on worked solutions of short prompts, then reinforces it on longer ones
in three stages (section 4.1 in small), and evaluates on held-out countries and documents, at the longest, after each
stage. Six to fourteen minutes on two cores.
"""

from base import get_config as base
from base import stage
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  c = base()
  c.mesh.data = 1
  c.model.look_back = True
  c.tokenizer.vocab_size = 1024
  c.data.examples = 2000
  c.data.worlds = 4
  c.warmstart.steps = 560
  c.warmstart.row_slots = 152
  c.stages.rl1 = stage(steps=60, prompt_tokens=110, response_tokens=40)
  c.stages.rl2 = stage(steps=400, prompt_tokens=140, response_tokens=40)
  c.stages.rl3 = stage(steps=300, prompt_tokens=140, response_tokens=40)  # once more, over the data in another order
  c.batch.prompts = 20
  c.batch.micro_rows = 1  # two thirds of the groups have no variance: rows of their own, they are not computed
  c.optimizer.learning_rate = 2e-4
  c.optimizer.b2 = 0.95
  c.aepo.low, c.aepo.high = 0.1, 0.3
  c.evaluation.prompts = 160
  c.evaluation.prompt_tokens = (140,)
  c.evaluation.response_tokens = 40
  return c

"""The whole recipe on a laptop: a small Qwen3-MoE learns to answer from a context, by AEPO on task-balanced batches.

  python experiments/run.py --config=tiny.py

Trains its tokenizer, generates five tasks from real facts, fine-tunes a random model of 300,000 parameters on worked
solutions until it can do some of each, then reinforces it at two prompt lengths (section 4.1 in small), and evaluates
on held-out countries and documents after each stage.
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
  c.warmstart.steps = 500
  c.stages.rl1 = stage(steps=100, prompt_tokens=80, response_tokens=40)
  c.stages.rl2 = stage(steps=50, prompt_tokens=120, response_tokens=40)
  c.batch.prompts = 10
  c.optimizer.learning_rate = 5e-4
  c.evaluation.prompt_tokens = (80, 120)
  c.evaluation.response_tokens = 40
  return c

"""A run of seconds: tiny model, a few steps of everything. Tests hand it to run.py and to the stages themselves.

`small.py:scored` replaces the rewards by a coin that the response itself decides: a model that has learned nothing gets
some reward, so that its samples differ and the optimizer moves. `small.py:compared` is the same with two variants.
"""

import zlib

from base import get_config as base
from base import stage

SCORED = {"scored", "compared"}


def get_config(kind=""):
  c = base()
  c.mesh.data = 1
  c.tokenizer.vocab_size = 1024
  c.data.examples = 30
  c.warmstart.steps = 6
  c.warmstart.warmup_steps = 2
  c.warmstart.rows = 4
  c.stages.one = stage(steps=4, prompt_tokens=80, response_tokens=8)
  c.stages.two = stage(steps=4, prompt_tokens=100, response_tokens=8, below=0.75)
  c.batch.prompts = 5
  c.batch.group = 4
  c.optimizer.learning_rate = 1e-3
  c.evaluation.prompts = 5
  c.evaluation.group = 4
  c.evaluation.prompt_tokens = (80,)
  c.evaluation.response_tokens = 8
  c.checkpoint.every = 3
  if kind in SCORED:
    from qwenlong_jax import rewards

    rewards.score = coin
  if kind == "compared":
    c.stages.one.steps, c.stages.two.steps = 2, 0
    c.seeds = (3,)
    c.variants = ({"name": "zeta"}, {"name": "alpha", "aepo": {"mode": "off"}})
  return c


def coin(example, response):
  """A Score of 0 or 1, equally likely, a function of the text alone."""
  from qwenlong_jax.types import Score

  reward = float(zlib.crc32(response.encode()) % 2)
  return Score(reward=reward, answer=response[-8:], failure="" if reward else "tails")

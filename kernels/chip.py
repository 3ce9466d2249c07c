"""For which chip the program at hand is traced."""

import jax
from jax.experimental.pallas import tpu as pltpu


def tpu() -> pltpu.TpuInfo | None:
  """The TPU of the mesh in context (`jax.set_mesh`, or inside `shard_map`), else of the default device; None: no TPU.

  So a program compiled on a CPU for a TPU topology is given that topology's chip.
  """
  try:
    return pltpu.get_tpu_info()
  except (ValueError, AttributeError):  # a CPU or GPU has no cores to ask for; of a TPU too new for jax we must hear
    if jax.default_backend() == "tpu":
      raise
    return None

"""For which chip the program at hand is traced."""

from jax.experimental.pallas import tpu as pltpu


def tpu() -> pltpu.TpuInfo | None:
  """The TPU of the mesh in context (`jax.set_mesh`, or inside `shard_map`), else of the default device; None: no TPU.

  So a program compiled on a CPU for a TPU topology is given that topology's chip.
  """
  try:
    return pltpu.get_tpu_info()
  except (ValueError, AttributeError):  # the default device has no cores to ask for, or is of an unknown kind
    return None

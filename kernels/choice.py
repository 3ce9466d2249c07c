"""How every door picks an implementation: by name, or the one that its table prefers on this backend."""

from collections.abc import Mapping
from typing import TypeVar

import jax

from qwenlong_jax.kernels import chip

Implementation = TypeVar("Implementation")


def choose(
  name: str | None,
  implementations: Mapping[str, Implementation],
  preferred: Mapping[str, str],
  argument: str = "implementation",
) -> Implementation:
  """The implementation called `name`; None takes `preferred[backend]` (key "default" where the backend is not listed).

  The backend is that of the mesh in context, so that a program compiled elsewhere for a TPU is the TPU's.

  Raises:
    ValueError: `name`, given as `argument`, is not one of `implementations`.
  """
  if name is None:
    name = preferred.get("tpu" if chip.tpu() else jax.default_backend(), preferred["default"])
  if name not in implementations:
    raise ValueError(f"{argument}={name!r} is not one of {sorted(implementations)}")
  return implementations[name]

"""How every door picks an implementation: by name, or the first of its table that this backend runs."""

from collections.abc import Callable, Mapping

import jax


def choose(name: str | None, implementations: Mapping[str, Callable], preferred: Mapping[str, str]) -> Callable:
  """The implementation called `name`; None takes `preferred[backend]` (key "default" where the backend is not listed).

  Raises:
    ValueError: `name` is not one of `implementations`.
  """
  if name is None:
    name = preferred.get(jax.default_backend(), preferred["default"])
  if name not in implementations:
    raise ValueError(f"implementation={name!r} is not one of {sorted(implementations)}")
  return implementations[name]

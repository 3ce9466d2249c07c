"""What TPUs are made of, by Google's published figures; the memory is what libtpu's compiler grants a program."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
  """Of one chip, or of what JAX calls a device where that is half of one."""

  flops: float  # bfloat16 FLOP/s of its MXUs
  memory: float  # GiB that the compiler grants
  bandwidth: float  # bytes/s of that memory
  link: float  # bytes/s of an interconnect link, one way


CHIPS = {
  "v5e": Chip(flops=197e12, memory=15.75, bandwidth=819e9, link=45e9),
  "v5p": Chip(flops=459e12, memory=95.73, bandwidth=2765e9, link=90e9),
  "v6e": Chip(flops=918e12, memory=31.24, bandwidth=1640e9, link=90e9),
}
HOP = 1e-6  # seconds from a chip to its neighbour, however little is sent; a usual figure, not a published one


def chip_of(topology: str) -> Chip:
  """Of a topology such as "v5p:4x4x4".

  Raises:
    ValueError: its form or its chip is unknown.
  """
  name, _, grid = topology.partition(":")
  if name not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", grid):
    raise ValueError(f"{topology=} is not a chip of {', '.join(CHIPS)} and a grid, such as v5p:4x4x4 or v6e:16x16")
  return CHIPS[name]

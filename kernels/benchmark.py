"""The operations beside their peers, on whatever machine this is.

  python -m qwenlong_jax.kernels.benchmark                 # time and FLOP/s on the accelerator (or CPU) at hand
  python -m qwenlong_jax.kernels.benchmark --schedule      # the TPU compiler's schedule; needs libtpu, no TPU
  python -m qwenlong_jax.kernels.benchmark --schedule --chip=v6e

tokamax, a peer, is not installed with the project: pip install tokamax
"""

from absl import app, flags

from qwenlong_jax.kernels.flash_attention import benchmark as flash_attention
from qwenlong_jax.kernels.schedule import CHIPS

SCHEDULE = flags.DEFINE_bool("schedule", False, "print the compiler's schedule instead of times")
CHIP = flags.DEFINE_multi_enum("chip", [*CHIPS], [*CHIPS], "chips to compile for")
LENGTH = flags.DEFINE_multi_integer("length", [], "lengths to time; default: what the backend bears")


def main(_: list[str]) -> None:
  if SCHEDULE.value:
    flash_attention.schedules(CHIP.value)
  else:
    flash_attention.times(LENGTH.value)


if __name__ == "__main__":
  app.run(main)

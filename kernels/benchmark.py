"""The operations beside their peers, on whatever machine this is.

  python -m qwenlong_jax.kernels.benchmark                         # times on the accelerator (or CPU) at hand
  python -m qwenlong_jax.kernels.benchmark --operation=token_stats --length=8192
  python -m qwenlong_jax.kernels.benchmark --schedule --chip=v6e   # the TPU compiler's schedule; needs libtpu, no TPU
  python -m qwenlong_jax.kernels.benchmark --memory                # the memory of what it compiles, likewise

tokamax, a peer, is not installed with the project: pip install tokamax
"""

import importlib.util
import os
import sys

from absl import app, flags

from qwenlong_jax.kernels.flash_attention import benchmark as flash_attention
from qwenlong_jax.kernels.grouped_matmul import benchmark as grouped_matmul
from qwenlong_jax.kernels.prefix_decode import benchmark as prefix_decode
from qwenlong_jax.kernels.ring_attention import benchmark as ring_attention
from qwenlong_jax.kernels.schedule import CHIPS, ENVIRONMENT
from qwenlong_jax.kernels.token_stats import benchmark as token_stats

OPERATIONS = {
  "flash_attention": flash_attention,
  "ring_attention": ring_attention,
  "prefix_decode": prefix_decode,
  "token_stats": token_stats,
  "grouped_matmul": grouped_matmul,
}
OPERATION = flags.DEFINE_multi_enum("operation", [*OPERATIONS], [*OPERATIONS], "which to measure")
SCHEDULE = flags.DEFINE_bool("schedule", False, "print the compiler's schedule instead of times")
MEMORY = flags.DEFINE_bool("memory", False, "print the memory that compiled programs need instead of times")
CHIP = flags.DEFINE_multi_enum("chip", [*CHIPS], [*CHIPS], "chips to compile for")
LENGTH = flags.DEFINE_multi_integer("length", [], "slots, tokens or rows to time; default: what the backend bears")


def main(_: list[str]) -> int:
  if SCHEDULE.value or MEMORY.value:
    if importlib.util.find_spec("libtpu") is None:
      print("error: this takes the TPU's compiler, but no TPU; pip install libtpu", file=sys.stderr)
      return 1
    os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
  for name in OPERATION.value:
    module = OPERATIONS[name]
    asked = "schedules" if SCHEDULE.value else "memories" if MEMORY.value else "times"
    print(f"\n{name}")
    if program := getattr(module, asked, None):
      program(LENGTH.value if asked == "times" else CHIP.value)
    else:
      print(f"no {asked} here; of {', '.join(n for n, other in OPERATIONS.items() if hasattr(other, asked))}")
  return 0


if __name__ == "__main__":
  app.run(main)

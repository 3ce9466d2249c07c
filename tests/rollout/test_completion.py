"""The sampler as whoever completes messages, against Hugging Face's `generate` on the same folder."""

import json
import shutil
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from qwenlong_jax.llm import Message, Request, Sampling, ask, samples
from qwenlong_jax.llm.limits import BudgetError
from qwenlong_jax.models import tokenizer as tokenizers
from qwenlong_jax.parallelism.mesh import make_mesh
from qwenlong_jax.rollout import pretrained
from qwenlong_jax.rollout.completion import LocalModel, Settings, prompt_slots

TEXTS = ["Ada Morn built the quay of Vell in 1911.", "Where is the harbour of Vell? Be brief."] * 5
WARM = Sampling(temperature=1.0, top_p=0.95, max_tokens=12)
GREEDY = Sampling(temperature=0.0, top_p=None, max_tokens=12)
WINDOW = 160


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A random Qwen3 in float32, two layers, and a tokenizer of its own."""
  import torch
  from transformers import Qwen3Config, Qwen3ForCausalLM

  path = tmp_path_factory.mktemp("models") / "tiny"
  text = tokenizers.train(TEXTS, path, vocab_size=280)
  sizes = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 16, "num_hidden_layers": 2}
  heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": WINDOW}
  torch.manual_seed(0)
  model = Qwen3ForCausalLM(Qwen3Config(vocab_size=text.vocab_size, **sizes, **heads)).eval()
  with torch.no_grad():
    for name, weight in model.named_parameters():
      weight.copy_(1 + 0.2 * torch.randn_like(weight) if "norm" in name else 0.3 * torch.randn_like(weight))
    often = [*text.stop_ids, text.think_end_id]  # drawn often enough to be seen
    model.lm_head.weight[often] *= torch.tensor([[2.0], [2.0], [3.0]])
  model.save_pretrained(path)
  return path


@pytest.fixture(scope="module")
def loaded(folder):
  return pretrained.load(folder, make_mesh(1), jnp.float32)


@pytest.fixture
def model(loaded, tmp_path):
  """name of a cache, changes -> LocalModel."""
  return lambda name="replies", **changes: LocalModel(
    loaded, Settings(tmp_path / name, **{"concurrency": 6, **changes}), since_ever=True
  )


def texts(replies):
  return [(reply.text, reply.failure, reply.tokens_out) for reply in replies]


def test_greedy_replies_are_those_of_transformers(folder, model):
  import torch
  from transformers import AutoModelForCausalLM, AutoTokenizer

  theirs, text = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
  asked = [ask(f"Who is {name}?", system=system, sampling=GREEDY) for name in "abcdef" for system in ("", "Be brief.")]
  told = (Message("user", "Who?"), Message("assistant", "Ada Morn."), Message("user", "Where, and what?"))
  asked.append(Request(told, GREEDY))
  stops = [text.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
  replies = model().complete(asked)
  assert {"length", ""} <= {reply.failure for reply in replies} and any(reply.reasoning for reply in replies)
  for request, reply in zip(asked, replies, strict=True):
    messages = [vars(message) for message in request.messages]
    ids = text.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.no_grad():
      out = theirs.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=stops, pad_token_id=stops[1])
    new = out[0, ids.shape[1] :]
    whole = text.decode(new, skip_special_tokens=True)
    thoughts, _, said = whole.rpartition("</think>")
    assert (reply.text, reply.reasoning) == (said.strip(), thoughts.strip())
    assert (reply.tokens_in, reply.tokens_out) == (ids.shape[1], len(new))
    assert reply.failure == ("length" if new[-1] not in stops else "" if said.strip() else "empty")


def test_a_reply_hangs_on_its_request_alone(model):
  """Not on who is sampled beside it, on the order, nor on what was there before."""
  asked = [request for n in range(5) for request in samples(ask("Who? " * (1 + n), sampling=WARM), 3)]
  together = model("together").complete(asked)
  assert len(set(texts(together))) > 12
  order = np.random.default_rng(0).permutation(5)
  moved = model("moved").complete([request for n in order for request in asked[3 * n : 3 * n + 3][::-1]])
  assert moved == [reply for n in order for reply in together[3 * n : 3 * n + 3][::-1]]
  alone = model("alone")
  assert [alone.complete([request])[0] for request in asked[:7]] == together[:7]
  alone.complete(asked[9:12])
  assert alone.complete(asked) == together
  hotter = [ask("Who? ", sampling=Sampling(temperature=1.0, top_p=0.95, max_tokens=12, seed=1))]
  assert model("alone").complete(hotter)[0].text != together[0].text


def test_devices_change_nothing(folder, model, loaded, tmp_path):
  asked = [request for n in range(3) for request in samples(ask("Who? " * (1 + n), sampling=WARM), 3)]
  wide = pretrained.load(folder, make_mesh(2, 2), jnp.float32)
  spread = LocalModel(wide, Settings(tmp_path / "spread", concurrency=6))
  assert texts(spread.complete(asked)) == texts(model().complete(asked))


def test_replies_are_kept_and_counted(model):
  first, asked = model(), samples(ask("Who?", sampling=WARM), 3)
  replies = first.complete([*asked, asked[0]])
  assert replies[3] == replies[0] and not any(reply.cached for reply in replies)
  usage = first.usage
  assert (usage.requests, usage.calls, usage.cached) == (4, 3, 1)
  assert usage.tokens_in == 3 * replies[0].tokens_in and usage.tokens_out == sum(r.tokens_out for r in replies[:3])
  assert usage.failures.total() == sum(bool(reply.failure) for reply in replies)
  again = model(price_in=10.0)
  assert all(reply.cached for reply in again.complete(asked))
  assert (again.usage.calls, again.usage.tokens_in, again.usage.tokens_out) == (3, usage.tokens_in, usage.tokens_out)
  assert again.usage.cost == pytest.approx(usage.tokens_in * 10 / 1e6)
  assert model().complete([ask("Who?", sampling=GREEDY)])[0].cached is False


def test_each_batch_is_kept_before_the_next_starts(model, loaded, monkeypatch):
  """Killed in the second batch, the run goes on with the bytes of one that was not."""
  asked = [request for n in range(5) for request in samples(ask(f"Who is {n}?", sampling=WARM), 3)]
  whole = model("whole").complete(asked)
  generate, runs = loaded.engine.generate, []

  def killed(*arguments, **settings):
    runs.append(0)
    if len(runs) == 2:
      raise KeyboardInterrupt
    return generate(*arguments, **settings)

  monkeypatch.setattr(loaded.engine, "generate", killed)
  with pytest.raises(KeyboardInterrupt):
    model("killed").complete(asked)
  again = model("killed")
  assert (again.complete(asked), again.usage.cached) == (whole, 6)
  assert len(runs) == 2 + 2


def test_the_budget_is_not_exceeded(model):
  asked = [ask(f"Who is {n}?", sampling=WARM) for n in range(9)]
  one = model("one").complete(asked[:1])[0].tokens_in + WARM.max_tokens
  poor = model(most_tokens=3 * one)
  with pytest.raises(BudgetError, match=rf"may take {one} more: raise most_tokens={3 * one}; .* in the cache"):
    poor.complete(asked)
  assert poor.usage.calls >= 3 and poor.usage.tokens_in + poor.usage.tokens_out <= 3 * one
  with pytest.raises(BudgetError):
    model(most_tokens=3 * one).complete(asked)
  assert model().complete(asked) == model("free").complete(asked)


def test_what_does_not_fit_fails_alone(model, loaded):
  window = 64
  room = window - WARM.max_tokens - len(loaded.tokenizer.chat([("user", "Who?")]))
  fits, long = ask("Who?" + "?" * room, sampling=WARM), ask("Who?" + "?" * (room + 1), sampling=WARM)
  assert len(loaded.tokenizer.chat([("user", fits.messages[0].content)])) == window - WARM.max_tokens
  client = model(window=window)
  assert [reply.failure == "too_long" for reply in client.complete([long, fits])] == [True, False]
  assert client.usage.calls == 1
  assert model("narrow", window=window - 1).complete([fits])[0].failure == "too_long"
  # It is not kept: another window has another answer; and the model's own cannot be exceeded.
  assert model(window=window + 1).complete([long])[0].failure != "too_long"
  beyond = ask("?" * (WINDOW - WARM.max_tokens), sampling=WARM)
  assert model(window=10**6).complete([beyond])[0].failure == "too_long"


def test_half_a_surrogate_pair_is_no_reason_to_stop(model):
  assert model().complete([ask("Who is \ud800?", sampling=GREEDY)])[0].tokens_out


def test_what_is_left_to_the_model_is_its_generation_config(folder, tmp_path, loaded):
  target = tmp_path / "warm"
  shutil.copytree(folder, target)
  (target / "generation_config.json").write_text(json.dumps({"temperature": 1.0, "top_p": 0.95}))
  warm = pretrained.load(target, make_mesh(1), jnp.float32)
  assert (loaded.temperature, loaded.top_p, warm.temperature, warm.top_p) == (0.7, 0.95, 1.0, 0.95)
  client = LocalModel(replace(loaded, temperature=1.0), Settings(tmp_path / "replies", concurrency=6))
  client.complete([ask("Who?", sampling=WARM), ask("Who?", sampling=Sampling(None, None, 12, None))])
  assert (client.usage.calls, client.usage.cached) == (1, 1)


def test_a_model_is_told_from_others_by_what_it_says(folder, tmp_path):
  same, other, dull = (tmp_path / name for name in ("same", "other", "dull"))
  for target in (same, other, dull):
    shutil.copytree(folder, target)
  (same / "README.md").write_text("nothing")
  weights = bytearray((other / "model.safetensors").read_bytes())
  weights[-1] ^= 1
  (other / "model.safetensors").write_bytes(weights)
  (dull / "chat_template.jinja").write_text(tokenizers.CHAT_TEMPLATE)
  seen = [pretrained.fingerprint(path) for path in (folder, same, other, dull)]
  assert seen[0] == seen[1] and len(set(seen)) == 3


def test_large_files_are_told_apart_by_size_and_blocks(tmp_path):
  path = tmp_path / "model.safetensors"
  seen = set()
  for content in (bytes(2**23), bytes(2**23 + 1), bytes(2**22) + b"x" * 2**14 + bytes(2**22 - 2**14)):
    path.write_bytes(content)
    seen.add(pretrained.fingerprint(tmp_path))
  assert len(seen) == 3


def test_slots_are_few_sizes_within_the_window():
  wanted = {1: 64, 64: 64, 65: 128, 128: 128, 129: 256, 500: 512, 513: 1000, 1000: 1000}
  assert {length: prompt_slots(length, 1000) for length in wanted} == wanted
  assert prompt_slots(40, 50) == 56


def test_a_tokenizer_beyond_the_embedding_is_refused(folder, tmp_path):
  target = tmp_path / "odd"
  shutil.copytree(folder, target)
  tokenizers.train([*TEXTS, "Many other words stand here beside those that were there before."], target, vocab_size=300)
  with pytest.raises(ValueError, match=r"odd: the tokenizer has \d+ tokens, the model embeds 280"):
    pretrained.load(target, make_mesh(1), jnp.float32)


def test_one_of_several_processes_is_refused(folder, monkeypatch):
  monkeypatch.setattr("jax.process_count", lambda: 2)
  with pytest.raises(
    ValueError, match=r"by one of 2 processes; start a single one .* or serve the model and"
  ):
    pretrained.load(folder, make_mesh(1), jnp.float32)

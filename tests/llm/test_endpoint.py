import asyncio
import email.utils
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loopback import Act, prompt_of, refuses, says

from qwenlong_jax.llm import Reply, Sampling, Usage, ask, samples
from qwenlong_jax.llm.cache import Replies
from qwenlong_jax.llm.endpoint import Endpoint, EndpointError
from qwenlong_jax.llm.limits import BudgetError, Pace
from qwenlong_jax.llm.wire import Settings, retry_after

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def endpoint(server, tmp_path):
  def build(**settings: Any) -> Endpoint:
    quick = {"first_wait": 0.01, "longest_wait": 0.02, "timeout": 5.0, "cache": tmp_path / "cache"}
    return Endpoint(Settings(server.url, "asked", **quick | settings))

  return build


def prompts(count: int):
  return [ask(f"{number}", sampling=Sampling(max_tokens=5)) for number in range(count)]


def estimated(count: int):
  """Prompts whose estimate is what the server counts: 10 tokens in and 5 out."""
  return [ask(f"{number:36}", sampling=Sampling(max_tokens=5)) for number in range(count)]


def test_replies_come_in_the_order_of_the_requests_and_at_most_so_many_at_once(server, endpoint):
  server.behave = lambda body, hit: says("re " + prompt_of(body), wait=0.002 * (20 - int(prompt_of(body))))
  client = endpoint(concurrency=4)
  replies = client.complete(prompts(20))
  assert [reply.text for reply in replies] == [f"re {number}" for number in range(20)]
  assert server.peak == 4
  assert (client.usage.calls, client.usage.tokens_in, client.usage.tokens_out) == (20, 200, 100)
  assert {reply.model for reply in replies} == {"served"}


def test_what_is_sent_is_what_was_asked(server, endpoint):
  asked = ask("p", "s", Sampling(0.5, None, 7, seed=3), sample=2)
  endpoint(extra={"top_k": 20}, length_parameter="max_completion_tokens").complete([asked])
  assert server.bodies == [
    {
      "model": "asked",
      "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}],
      "temperature": 0.5,
      "max_completion_tokens": 7,
      "seed": 5,
      "top_k": 20,
    }
  ]


@pytest.mark.parametrize(
  ("trouble", "kind"),
  [
    (refuses(429), "rate_limited"),
    (refuses(429, Retry_After="0.2"), "rate_limited"),
    (refuses(500), "server_error"),
    (Act(503, "<html>busy</html>"), "server_error"),
    (refuses(408), "timeout"),
    (says("late", wait=3), "timeout"),
    (Act(body=says("x").body, drip=0.05), "timeout"),
    (Act(body=says("x" * 5000).body, reset=True), "connection"),
    (Act(body=says("x").body[:-20]), "malformed_body"),
    (Act(body="[]"), "malformed_body"),
    (Act(body='{"choices": [{"message": null}]}'), "malformed_body"),
    (Act(body='{"choices": []}'), "no_choices"),
    (Act(body='{"error": {"message": "upstream"}}'), "server_error"),
  ],
)
def test_what_may_pass_is_tried_again_and_then_a_failure_that_a_rerun_cures(server, endpoint, trouble, kind):
  server.behave = lambda body, hit: says("good") if prompt_of(body) == "0" and hit == 2 else trouble
  client = endpoint(timeout=0.3, attempts=2)
  first, second = client.complete(prompts(2))
  assert first.text == "good" and not first.failure
  assert second == Reply("", failure=kind)
  assert client.usage.retries == {kind: 2} and client.usage.failures == {kind: 1}
  server.behave = lambda body, hit: says("cured")
  assert [reply.text for reply in endpoint().complete(prompts(2))] == ["good", "cured"]


def test_a_server_that_asks_to_wait_is_given_the_time_by_all_requests(server, endpoint):
  server.behave = lambda body, hit: refuses(429, Retry_After="1") if sum(server.hits.values()) == 1 else says("ok")
  assert [reply.text for reply in endpoint(concurrency=1).complete(prompts(2))] == ["ok", "ok"]
  assert server.times[1] - server.times[0] >= 1


def test_a_wait_beyond_the_longest_is_an_error(server, endpoint):
  server.behave = lambda body, hit: refuses(429, Retry_After="7200")
  with pytest.raises(EndpointError, match="asks to wait 7200 s"):
    endpoint().complete(prompts(1))


def test_retry_after_is_seconds_or_a_date():
  now = time.time()
  assert retry_after("1.5", now) == 1.5
  assert retry_after(email.utils.formatdate(now + 30, usegmt=True), now) == pytest.approx(30, abs=1)
  assert retry_after("soon", now) == retry_after("", now) == retry_after("-3", now) == 0


@pytest.mark.parametrize(
  ("status", "remedy"), [(400, "parameter"), (401, "A_KEY"), (403, "may not"), (404, "base_url"), (402, "top up")]
)
def test_what_cannot_pass_is_one_error_with_a_remedy_and_no_second_call(server, endpoint, monkeypatch, status, remedy):
  monkeypatch.setenv("A_KEY", "secret-123")
  server.behave = lambda body, hit: refuses(status, "wrong: secret-123")
  with pytest.raises(EndpointError) as raised:
    endpoint(key_variable="A_KEY", concurrency=1).complete(prompts(3))
  said = str(raised.value)
  assert server.url in said and str(status) in said and remedy in said and "asked" in said
  assert "secret-123" not in said
  assert server.keys == ["Bearer secret-123"]


def test_an_exhausted_quota_is_no_rate_limit(server, endpoint):
  server.behave = lambda body, hit: refuses(429, "pay", code="insufficient_quota")
  with pytest.raises(EndpointError, match="pay"):
    endpoint(concurrency=1).complete(prompts(2))
  assert sum(server.hits.values()) == 1


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(server, endpoint, monkeypatch, tmp_path, caplog):
  with pytest.raises(EndpointError, match="A_KEY is not set"):
    endpoint(key_variable="A_KEY")
  monkeypatch.setenv("A_KEY", "secret-123")
  caplog.set_level(logging.DEBUG)
  client = endpoint(key_variable="A_KEY")
  client.complete(prompts(1))
  assert server.keys == ["Bearer secret-123"]
  assert "secret-123" not in caplog.text + repr(client.settings) + repr(client.usage)
  assert not any(b"secret-123" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_server_that_is_down_stops_the_run(server, endpoint):
  server.behave = lambda body, hit: refuses(500)
  with pytest.raises(
    EndpointError, match=r"failed 3 requests in a row, 2 times each \(server_error\).*see that it is up"
  ):
    endpoint(attempts=2, give_up=3, concurrency=1).complete(prompts(50))
  assert len(server.bodies) == 6


@pytest.mark.parametrize(
  ("answer", "failure", "text"),
  [
    (says("half a sent", finish="length"), "length", "half a sent"),
    (says("", finish="content_filter"), "content_filter", ""),
    (says(None, refusal="I will not."), "refusal", "I will not."),
    (says(None), "empty", ""),
    (says("<think>only thought</think>  "), "empty", ""),
    (refuses(400, "filtered", code="content_filter"), "content_filter", ""),
  ],
)
def test_a_useless_answer_is_a_reply_with_a_reason_and_paid_once(server, endpoint, answer, failure, text):
  server.behave = lambda body, hit: answer
  client = endpoint()
  (reply,) = client.complete(prompts(1))
  assert (reply.failure, reply.text) == (failure, text)
  assert client.usage.failures == {failure: 1}
  assert endpoint().complete(prompts(1)) == [reply]
  assert len(server.bodies) == 1


def test_a_prompt_too_long_for_the_model_fails_alone(server, endpoint):
  window = "This model's maximum context length is 8 tokens"
  server.behave = lambda body, hit: refuses(400, window) if prompt_of(body) == "0" else says("ok")
  assert [reply.failure for reply in endpoint().complete(prompts(2))] == ["too_long", ""]


def test_thoughts_are_taken_off_the_text(server, endpoint):
  server.behave = lambda body, hit: says("<think>hm</think>\nyes") if prompt_of(body) == "0" else says("<b>")
  thought, plain = endpoint().complete(prompts(2))
  assert (thought.text, thought.reasoning, plain.text) == ("yes", "hm", "<b>")


def test_equal_requests_are_paid_once_and_samples_each(server, endpoint):
  client = endpoint()
  (request,) = prompts(1)
  replies = client.complete([*samples(request, 3), request])
  assert sorted(body["seed"] for body in server.bodies) == [0, 1, 2]
  assert replies[3] == replies[0]
  assert (client.usage.requests, client.usage.calls, client.usage.cached) == (4, 3, 1)
  again = endpoint()
  assert again.complete([request])[0].cached
  assert (again.usage.cached, again.usage.calls, again.usage.tokens_in) == (1, 0, 0)
  hotter = ask("0", sampling=Sampling(temperature=1.0, max_tokens=5))
  assert not again.complete([hotter])[0].cached


@pytest.mark.parametrize(
  "damage", ["value = substr(value, 1, 90)", "value = replace(value, 'echo', 'evil')", "mode = 4"]
)
def test_a_damaged_entry_is_fetched_again_and_said(server, endpoint, tmp_path, damage, caplog):
  endpoint().complete(prompts(1))
  with sqlite3.connect(tmp_path / "cache/cache.db") as database:
    assert database.execute(f"UPDATE Cache SET {damage}").rowcount == 1
  client = endpoint()
  (reply,) = client.complete(prompts(1))
  assert (reply.text, reply.cached, client.usage.damaged) == ("echo 0", False, 1)
  assert "is damaged" in caplog.text
  assert endpoint().complete(prompts(1))[0].cached


def test_an_unreadable_cache_is_an_error_that_says_where(endpoint, tmp_path):
  (tmp_path / "cache").mkdir()
  (tmp_path / "cache/cache.db").write_bytes(b"not a database" * 100)
  with pytest.raises(OSError, match=r"cache.*move the folder away"):
    endpoint()


def test_nothing_kept_is_ever_evicted_or_unpickled(tmp_path):
  replies = Replies(tmp_path)
  replies.put("k", Reply("x" * 100_000))
  assert replies._cache.eviction_policy == "none"
  assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
  assert replies.get("k") == Reply("x" * 100_000)


def test_nothing_more_is_paid_once_replies_cannot_be_kept(server, endpoint, monkeypatch):
  client = endpoint(concurrency=2)

  def full(key: str, reply: Reply) -> None:
    raise sqlite3.OperationalError("database or disk is full")

  monkeypatch.setattr(client._replies, "put", full)
  with pytest.raises(sqlite3.OperationalError, match="full"):
    client.complete(prompts(50))
  assert len(server.bodies) <= 3


def test_the_budget_stops_the_run_and_keeps_what_was_paid(server, endpoint):
  client = endpoint(most_tokens=100, concurrency=2)
  with pytest.raises(BudgetError, match=r"spent 90 tokens .*raise most_tokens=100.*in the cache"):
    client.complete(estimated(50))
  paid = len(server.bodies)
  assert paid == 6 == client.usage.calls
  again = endpoint(most_tokens=100)
  with pytest.raises(BudgetError):
    again.complete(estimated(50))
  assert max(server.hits.values()) == 1 and again.usage.cached == paid


def test_the_budget_may_be_money(endpoint):
  client = endpoint(most_cost=101e-6, price_in=1.0, price_out=2.0, concurrency=1)
  with pytest.raises(BudgetError, match=r"raise most_cost=0\.000101"):
    client.complete(estimated(50))
  assert client.usage.cost == pytest.approx(100e-6)


def test_requests_and_tokens_are_spread_over_the_minute():
  pace = Pace(requests=60, tokens=600)
  assert [pace.start(0, tokens=5), pace.start(0, tokens=20), pace.start(0, tokens=5)] == [0, 1, 3]
  pace.settle(booked=5, used=105)
  assert pace.start(3, tokens=1) == 13.5


def test_the_pace_is_kept(server, endpoint):
  client = endpoint(requests_per_minute=600)
  begun = time.monotonic()
  client.complete(prompts(4))
  # None arrives before its time; a busy machine may make any of them late.
  assert all(arrived - begun >= 0.1 * number for number, arrived in enumerate(sorted(server.times)))


def test_it_works_where_an_event_loop_runs_already(endpoint):
  async def notebook() -> list[Reply]:
    return endpoint().complete(prompts(1))

  assert asyncio.run(notebook())[0].text == "echo 0"


KILLED = """
import sys
from qwenlong_jax.llm import ask
from qwenlong_jax.llm.endpoint import Endpoint
from qwenlong_jax.llm.wire import Settings
client = Endpoint(Settings(sys.argv[1], "asked", sys.argv[2], concurrency=2))
client.complete([ask(str(number)) for number in range(30)])
"""


def test_a_killed_run_pays_nothing_twice(server, tmp_path):
  server.behave = lambda body, hit: says("re " + prompt_of(body), wait=0.03)
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-c", KILLED, server.url, str(tmp_path)]
  with subprocess.Popen(command, env=environment) as process:
    while sum(server.answered.values()) < 10 and process.poll() is None:
      time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
  assert process.returncode == -signal.SIGKILL
  killed = sum(server.hits.values())
  subprocess.run(command, env=environment, check=True)
  assert len(server.hits) == 30
  # Only what was under way when the process died, two calls at most, is asked for again.
  assert 10 <= killed < 30 and sum(server.hits.values()) <= 30 + 2
  before = len(server.bodies)
  client = Endpoint(Settings(server.url, "asked", tmp_path))
  assert [reply.text for reply in client.complete([ask(str(n)) for n in range(30)])] == [f"re {n}" for n in range(30)]
  assert len(server.bodies) == before


def test_a_missing_library_names_the_extra():
  code = "import sys; sys.modules['openai'] = None; import qwenlong_jax.llm; import qwenlong_jax.llm.endpoint"
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  failed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
  assert "openai; pip install 'qwenlong_jax[synthesis]'" in failed.stderr


def test_a_schema_goes_along_where_the_server_takes_one(server, endpoint):
  request = replace(prompts(1)[0], schema={"type": "object"})
  endpoint().complete([request])
  endpoint(json_schema=True).complete([request])
  assert "response_format" not in server.bodies[0]
  assert server.bodies[1]["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_endpoints_share_a_budget_that_counts_what_was_ever_paid(endpoint, tmp_path):
  endpoint(price_in=1.0, price_out=2.0).complete(estimated(3))
  assert Replies(tmp_path / "cache").spent() == (3, 30, 15)
  usage = Usage()
  build = {"price_in": 1.0, "price_out": 2.0, "most_tokens": 80}
  one = Endpoint(endpoint(**build).settings, usage, since_ever=True)
  other = Endpoint(replace(endpoint(**build).settings, cache=tmp_path / "other"), usage, since_ever=True)
  assert (usage.calls, usage.tokens_in, usage.tokens_out, usage.cost) == (3, 30, 15, pytest.approx(60e-6))
  one.complete(estimated(4))
  other.complete(estimated(1))
  with pytest.raises(BudgetError, match="spent 75 tokens"):
    one.complete(estimated(5))

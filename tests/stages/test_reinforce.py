"""The loop's numbers against a plain recomputation from its rollouts, and the steps that must change nothing.

Letters: P prompts, G responses to each.
"""

import dataclasses
import json
import signal
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import small

from qwenlong_jax import rewards
from qwenlong_jax.checkpoints import Checkpoints
from qwenlong_jax.reporting import Reporter
from qwenlong_jax.rollout.engine import Engine
from qwenlong_jax.stages import budget, reinforce, setup
from qwenlong_jax.stages.session import Session
from qwenlong_jax.types import Score

P, G, STEPS = 10, 4, 6
LOW, HIGH = 6.3, 6.6  # an untrained model's entropy is above, and falls through


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
  config = small.get_config()
  config.mesh.data = 5
  config.optimizer.learning_rate = 2e-2
  config.aepo.low, config.aepo.high = LOW, HIGH
  config.batch.prompts = P
  config.batch.micro_rows = 1
  config.entropy.temperature = 0.9
  config.stages.one.steps = STEPS
  return setup.workshop(config.lock(), tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def learner(shop):
  return reinforce.make_learner(shop)


@pytest.fixture(scope="module")
def engine(shop, learner):
  return Engine(learner.graph, shop.mesh)


class Recorder:
  """The loop's learner and engine, which keep what passes through them."""

  def __init__(self, learner, engine, poisoned=()):
    self.learner, self.engine, self.poisoned = learner, engine, poisoned
    self.rollouts, self.states, self.batches = [], [], []

  @property
  def graph(self):
    return self.learner.graph

  def update(self, state, batch):
    """One step of the real learner; in the steps `poisoned` with a NaN among the weights."""
    if len(self.batches) in self.poisoned:
      batch = dataclasses.replace(batch, weight=np.where(batch.sample == 0, np.nan, batch.weight).astype(np.float32))
    self.batches.append(batch)
    self.states += [jax.device_get(state)] if not self.states else []
    state, metrics = self.learner.update(state, batch)
    self.states.append(jax.device_get(state))
    return state, metrics

  def generate(self, *arguments, **options):
    sampled = self.engine.generate(*arguments, **options)
    self.rollouts.append(jax.device_get(sampled))
    return sampled


@pytest.fixture
def play(shop, learner, engine, monkeypatch, tmp_path):
  """play(score, ...): the stage's steps under these rewards -> (recorder, rows of metrics.jsonl, scores, examples)."""
  handler = signal.getsignal(signal.SIGTERM)

  def run(score, poisoned=(), steps=STEPS, limit=5):
    recorder, seen = Recorder(learner, engine, poisoned), []
    monkeypatch.setattr(rewards, "score", score)
    monkeypatch.setattr(budget, "sampler", lambda *_, **__: recorder)
    scored = reinforce.score
    monkeypatch.setattr(
      reinforce,
      "score",
      lambda shop, examples, sampled: seen.append((examples, scored(shop, examples, sampled))) or seen[-1][1],
    )
    config = shop.config.copy_and_resolve_references()
    config.stages.one.steps, config.optimizer.nonfinite_limit = steps, limit
    own = dataclasses.replace(shop, config=config.lock())
    with Checkpoints(tmp_path / "checkpoints", keep=2) as checkpoints, Reporter(tmp_path) as reporter:
      session = Session(checkpoints, reporter, every=3, total=steps)
      state = learner.create_state(jax.random.key(1))
      try:
        reinforce.train(own, session, recorder, state, name="one", number=0, first=0)
      except FloatingPointError as error:
        recorder.error = str(error)
      recorder.carry = session.carry
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    return SimpleNamespace(recorder=recorder, rows=rows, examples=[e for e, _ in seen], scores=[s for _, s in seen])

  yield run
  signal.signal(signal.SIGTERM, handler)


def oracle(reward, tasks, length, s):
  """Eqs. 4 and 7 and the mask of section 4.4, number by number: what the row of one step must say."""
  deviation = {}
  for task in set(tasks):
    pooled = [r for row, other in zip(reward, tasks) if other == task for r in row]
    mean = sum(pooled) / len(pooled)
    deviation[task] = (sum((r - mean) ** 2 for r in pooled) / (len(pooled) - 1)) ** 0.5
  objective, masked, learned, constant = 0.0, 0, 0, 0
  for rewards_of_group, task, lengths in zip(reward, tasks, length):
    mean = sum(rewards_of_group) / G
    constant += len(set(rewards_of_group)) == 1
    for r, tokens in zip(rewards_of_group, lengths):
      advantage = 0.0 if len(set(rewards_of_group)) == 1 else (r - mean) / (deviation[task] + 1e-6)
      if s and advantage < 0:
        masked += 1
      elif advantage:
        learned += int(tokens)
        objective += advantage * int(tokens) / int(sum(lengths)) / P
  return {"loss": -objective, "masked_samples": masked, "learned_tokens": learned, "zero_variance_groups": constant}


def same_bits(one, other):
  return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_every_row_is_what_its_rollouts_rewards_and_entropies_say(shop, play):
  run = play(small.coin)
  s, latches = 0, []
  for step, row in enumerate(run.rows):
    sampled, tasks = run.recorder.rollouts[step], [example.task for example in run.examples[step]]
    reward = [[score.reward for score in group] for group in run.scores[step]]
    s = 1 if row["entropy"] > HIGH else 0 if row["entropy"] < LOW else s
    latches.append(s)
    expected = oracle(reward, tasks, sampled.length, s)
    assert row["latch"] == s
    assert row["loss"] == pytest.approx(expected.pop("loss"), rel=1e-5, abs=1e-7)
    assert {name: row[name] for name in expected} == expected
    assert row["reward"] == pytest.approx(np.mean(reward))
    inside = np.arange(sampled.tokens.shape[2]) < sampled.length[..., None]
    means = [values[real].mean() for values, real in zip(sampled.entropy.reshape(P * G, -1), inside.reshape(P * G, -1))]
    assert row["entropy"] == pytest.approx(np.mean(means), rel=1e-5)
    assert row["reward_by_task"] == {
      task: pytest.approx(np.mean([group for group, other in zip(reward, tasks) if other == task])) for task in tasks
    }
    assert row["failures"] == {"tails": int(P * G - np.sum(reward))}
    assert row["response_length"] == pytest.approx(sampled.length.mean())
    ended = [
      [shop.tokenizer.stop_ids.count(t[n - 1]) for t, n in zip(*pair)] for pair in zip(sampled.tokens, sampled.length)
    ]
    assert row["stopped_fraction"] == pytest.approx(np.mean(ended))
    assert row["prefill_tokens"] == sampled.prompts.tokens.size
  assert len(run.rows) == STEPS
  assert set(latches) == {0, 1}, f"the test's band is never left: {[row['entropy'] for row in run.rows]}"
  assert max(row["gap_max"] for row in run.rows) < 1e-5


def test_the_entropys_own_temperature_reaches_the_sampler(shop):
  assert setup.sampling_of(shop, 8).entropy_temperature == 0.9


def test_a_batch_holds_every_task_and_every_response_is_to_its_own_prompt(shop, play):
  run = play(small.coin, steps=2)
  for examples, sampled in zip(run.examples, run.recorder.rollouts):
    assert set(Counter(example.task for example in examples).values()) == {P // 5}
    for example, tokens, length in zip(examples, sampled.prompts.tokens, sampled.prompts.length):
      assert shop.tokenizer.decode(tokens[:length]) == shop.tokenizer.decode(
        shop.tokenizer.prompt(example.context, example.question)
      )
  first, second = ({example.id for example in examples} for examples in run.examples)
  assert not first & second
  assert not np.array_equal(run.recorder.rollouts[0].tokens, run.recorder.rollouts[1].tokens)


def test_where_all_rewards_are_equal_nothing_changes_but_the_step(play):
  run = play(lambda example, response: Score(reward=1.0, answer=""), steps=2)
  assert [row["skipped"] for row in run.rows] == ["nothing_to_learn"] * 2
  assert all((row["loss"], row["gradient_norm"], row["learned_tokens"]) == (0, 0, 0) for row in run.rows)
  assert all(row["zero_variance_groups"] == P for row in run.rows)
  assert all(row.get("gap_max") is None for row in run.rows)  # The learner computed nothing to compare with.
  before, *after = run.recorder.states
  for number, state in enumerate(after, 1):
    assert same_bits(state.params, before.params) and same_bits(state.optimizer, before.optimizer)
    assert state.step == number
  assert run.examples[0] != run.examples[1]


def test_a_step_without_a_finite_gradient_is_skipped_and_too_many_in_a_row_end_the_run(play, tmp_path):
  run = play(small.coin, poisoned={1, 3, 4}, limit=2)
  assert [row["skipped"] for row in run.rows] == ["", "nonfinite", "", "nonfinite"]
  states = run.recorder.states
  for step, moved in enumerate([True, False, True, False, False]):
    assert same_bits(states[step].params, states[step + 1].params) is not moved
    assert same_bits(states[step].optimizer, states[step + 1].optimizer) is not moved
    assert states[step + 1].step == step + 1
  assert "gradient_norm" in run.rows[1]["nonfinite_fields"] and run.rows[1]["gradient_norm"] is None
  assert run.recorder.carry.nonfinite == 2  # the first one does not count: a good step came after it
  assert run.recorder.error == (
    "the gradient was NaN or infinite in 2 steps in a row; the last good checkpoint is step 3 in "
    f"{tmp_path / 'checkpoints'}. Raise optimizer.nonfinite_limit to go on past it, or start in another workdir with a "
    "lower learning rate"
  )

"""The engine against a plain loop that sends every sample's own row through the whole model again for each token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from qwenlong_jax.parallelism.mesh import make_mesh
from qwenlong_jax.rollout.engine import Engine
from qwenlong_jax.rollout.sampling import Sampling, sample
from qwenlong_jax.rollout.weights import for_decoding
from qwenlong_jax.types import Prompts

P, G, S, R, V = 8, 3, 10, 6, 37
PAD = 36
KEY = jax.random.key(7)
TEMPERATURE, TOP_P = 0.7, 0.9
KINDS = ["moe", "dense, then moe, experts grouped"]


def random_prompts(seed=0, count=P):
  random = np.random.default_rng(seed)
  length = random.integers(1, S + 1, count).astype(np.int32)
  length[:2] = 1, S
  tokens = np.where(np.arange(S) < length[:, None], random.integers(0, V - 1, (count, S)), PAD)
  return Prompts(tokens=tokens.astype(np.int32), length=length)


@pytest.fixture(scope="module")
def naive(tiny):
  """kind -> (tokens, logprob, entropy) [P G R]: the prompt repeated per sample, no cache, no end but the budget's."""

  @functools.partial(jax.jit, static_argnums=0)
  def draw(graph, params, rows, length, keys, step):
    slots = jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape)
    model = nnx.merge(graph, params)
    hidden = model(rows, slots, jnp.where(slots < length[:, None], 0, -1))
    logits = model.logits(hidden[jnp.arange(len(rows)), length - 1])
    return sample(logits, jax.vmap(lambda key: jax.random.fold_in(key, step))(keys), TEMPERATURE, TOP_P)

  @functools.cache
  def run(kind):
    prompts = random_prompts()
    rows = np.repeat(np.pad(prompts.tokens, ((0, 0), (0, R))), G, axis=0)
    start = np.repeat(prompts.length, G)
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(P * G))
    tokens, logprobs, entropies = np.zeros((3, P * G, R))
    for t in range(R):
      tokens[:, t], logprobs[:, t], entropies[:, t] = draw(*tiny(kind), rows, start + t, keys, t)
      rows[np.arange(P * G), start + t] = tokens[:, t]
    return tokens.reshape(P, G, R).astype(int), logprobs.reshape(P, G, R), entropies.reshape(P, G, R)

  return run


@pytest.fixture(scope="module")
def sampling(naive):
  """kind -> how its responses stop; each kind is another case, to compile few programs.

  "moe": three stop ids, which some of the naive run's samples reach and others never do. The other: every sample has
  stopped by its fourth token, and one of the stop ids pads as well.
  """

  @functools.cache
  def choose(kind):
    tokens, *_ = naive(kind)
    drawn = tokens[[0, 3, 6], 0, [1, 2, 4]] if kind == "moe" else np.unique(tokens[..., 3])
    stop_ids = tuple(drawn.tolist())
    return Sampling(TEMPERATURE, TOP_P, R, stop_ids, PAD if kind == "moe" else stop_ids[0])

  return choose


@pytest.fixture(scope="module")
def engine(tiny):
  """(kind, devices, ring, lanes) -> Engine, each made once."""
  return functools.cache(
    lambda kind, devices=1, ring=1, lanes=0: Engine(tiny(kind)[0], make_mesh(devices, ring), lanes=lanes, ring_block=8)
  )


@pytest.fixture(scope="module")
def generate(tiny, engine, sampling):
  """(kind, prompts, devices=1, ring=1, lanes=0, key=KEY) -> Rollout in numpy."""

  def run(kind, prompts, devices=1, ring=1, lanes=0, key=KEY):
    _, params = tiny(kind)
    one = engine(kind, devices, ring, lanes)
    weights = for_decoding(params, one.mesh, np.float32)
    return jax.device_get(one.generate(weights, prompts, key, group=G, sampling=sampling(kind)))

  return run


@pytest.mark.parametrize("kind", KINDS)
def test_it_draws_what_repeating_the_prompt_and_recomputing_everything_draws(generate, naive, sampling, kind):
  """Token for token, up to each sample's stop, log-probabilities and entropies to 1e-5; padding after it."""
  tokens, logprob, entropy = naive(kind)
  ends = np.isin(tokens, sampling(kind).stop_ids)
  length = np.where(ends.any(2), ends.argmax(2) + 1, R)
  inside = np.arange(R) < length[..., None]
  assert len(np.unique(length)) > 2 and len(np.unique(tokens)) > V / 2 and (tokens[:, 0] != tokens[:, 1]).any()

  prompts = random_prompts()
  rollout = generate(kind, prompts)
  np.testing.assert_array_equal(rollout.tokens, np.where(inside, tokens, sampling(kind).pad_id))
  np.testing.assert_array_equal(rollout.length, length)
  np.testing.assert_array_equal(rollout.stopped, ends.any(2))
  np.testing.assert_allclose(rollout.logprob, np.where(inside, logprob, 0), atol=1e-5, rtol=0)
  np.testing.assert_allclose(rollout.entropy, np.where(inside, entropy, 0), atol=1e-5, rtol=0)
  for values in (rollout.logprob, rollout.entropy):
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values[~inside], 0.0)
  np.testing.assert_array_equal(rollout.prompts.tokens, prompts.tokens)
  assert rollout.tokens.dtype == np.int32


def test_decoding_ends_with_the_last_response_or_the_budget(generate):
  running, done = (generate(kind, random_prompts()) for kind in KINDS)
  assert not running.stopped.all() and running.decode_steps == running.length.max() == R
  assert done.stopped.all() and done.decode_steps == done.length.max() == 4 < R


def test_the_number_of_devices_changes_nothing(generate):
  """One prompt a device: their loops end at different steps."""
  one, many = (generate("moe", random_prompts(), devices=n) for n in (1, 8))
  assert len(np.unique(one.length.max(1))) > 1
  for name in ("tokens", "length", "stopped", "prefill_tokens", "decode_steps"):
    np.testing.assert_array_equal(getattr(many, name), getattr(one, name), err_msg=name)
  np.testing.assert_allclose(many.logprob, one.logprob, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
  "kind, devices, ring, lanes",
  [
    ("moe", 1, 1, 1),
    ("moe", 2, 1, 3),
    ("moe", 2, 4, 0),
    ("dense, then moe, experts grouped", 1, 4, 3),
    ("dense, then moe, experts grouped", 4, 2, 1),
  ],
)
def test_neither_rings_nor_lanes_change_what_is_drawn(generate, kind, devices, ring, lanes):
  """Lanes: groups of other lengths end at other times, and the next prompt is prefilled among those that go on."""
  one, many = generate(kind, random_prompts()), generate(kind, random_prompts(), devices, ring, lanes)
  for name in ("tokens", "length", "stopped"):
    np.testing.assert_array_equal(getattr(many, name), getattr(one, name), err_msg=name)
  np.testing.assert_allclose(many.logprob, one.logprob, atol=2e-5, rtol=0)
  np.testing.assert_allclose(many.entropy, one.entropy, atol=2e-5, rtol=0)


def test_lanes_are_taken_again_as_soon_as_they_are_free(generate):
  """The steps are those of dealing each prompt, in order, to the lane that is free first."""
  lengths = generate("moe", random_prompts()).length.max(1) - 1  # the first token comes with the prefill
  free = np.zeros(3, int)
  for length in lengths:
    lane = free.argmin()
    free[lane] += length
  assert generate("moe", random_prompts(), lanes=3).decode_steps == free.max() + 1


def test_batch_mates_do_not_change_a_response(generate):
  prompts, others = random_prompts(), random_prompts(1)
  whole = generate("moe", prompts)
  mixed = generate(
    "moe",
    Prompts(
      np.concatenate([prompts.tokens[:3], others.tokens[3:]]), np.concatenate([prompts.length[:3], others.length[3:]])
    ),
  )
  assert (mixed.tokens[3:] != whole.tokens[3:]).any()
  np.testing.assert_array_equal(mixed.tokens[:3], whole.tokens[:3])
  np.testing.assert_allclose(mixed.logprob[:3], whole.logprob[:3], atol=1e-5, rtol=0)


def test_a_response_with_a_key_of_its_own_draws_the_same_in_any_place(generate):
  prompts = random_prompts()
  keys = jax.vmap(functools.partial(jax.random.fold_in, KEY))(np.arange(P * G)).reshape(P, G)
  whole, place = generate("moe", prompts), np.random.default_rng(5).permutation(P)
  moved = generate("moe", Prompts(prompts.tokens[place], prompts.length[place]), key=keys[place][:, ::-1])
  np.testing.assert_array_equal(moved.tokens, whole.tokens[place][:, ::-1])
  with pytest.raises(ValueError, match=rf"keys of shape \({P}, 1\) for {P} prompts and {G} responses"):
    generate("moe", prompts, key=keys[:, :1])


def test_another_key_draws_anew_and_a_shape_compiles_once(generate):
  one, other = generate("moe", random_prompts()), jax.random.fold_in(KEY, 99)
  compiled = []
  listener = lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None  # noqa: E731
  jax.monitoring.register_event_duration_secs_listener(listener)
  try:
    two = generate("moe", random_prompts(), key=other)
    generate("moe", random_prompts(2))
    assert not compiled
    jax.jit(lambda x: x + 1)(1)
    assert compiled, "the event that this test listens to has another name now"
  finally:
    jax.monitoring.unregister_event_duration_listener(listener)
  assert (one.tokens != two.tokens).mean() > 0.3


def traced(tiny, group, slots, max_tokens):
  graph, params = tiny("dense")
  engine = Engine(graph, make_mesh(1))
  prompts = Prompts(np.zeros((2, slots), np.int32), np.full(2, slots, np.int32))
  sampling = Sampling(TEMPERATURE, TOP_P, max_tokens, (), PAD)
  return jax.jit(lambda params: engine.generate(params, prompts, KEY, group=group, sampling=sampling)).trace(params)


def test_a_prompt_is_computed_once_for_its_group(tiny, generate):
  """Sixteen responses cost the arithmetic of one, but for their own tokens; sixteen prefills would cost sixteen."""
  one, sixteen = (traced(tiny, group, 256, 1).lower().cost_analysis()["flops"] for group in (1, 16))
  assert one > 0 and sixteen < 1.5 * one
  for devices in (1, 8):
    assert generate("moe", random_prompts(), devices=devices).prefill_tokens == P * S


def equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for inner in jaxprs_in_params(equation.params):
      yield from equations(inner)


def test_the_loop_never_calls_the_host(tiny):
  trace = traced(tiny, G, S, R)
  names = {equation.primitive.name for equation in equations(trace.jaxpr.jaxpr)}
  assert "while" in names and "dot_general" in names
  assert not [name for name in names if any(word in name for word in ("callback", "feed", "debug", "print"))]
  text = trace.lower().as_text()
  assert "stablehlo.while" in text
  assert not [word for word in ("callback", "infeed", "outfeed", "send", "recv") if word in text]


def test_prompts_must_divide_over_the_devices(generate):
  with pytest.raises(ValueError, match=r"6 prompts do not divide over mesh.data=8; change batch.prompts or mesh.data"):
    generate("moe", random_prompts(count=6), devices=8)


@pytest.mark.parametrize("length", [0, S + 1])
def test_a_prompt_that_is_empty_or_longer_than_its_slots_is_refused(generate, length):
  prompts = random_prompts()
  prompts.length[5] = length
  with pytest.raises(ValueError, match=rf"prompt 5 has {length} tokens; its slots take 1 to {S}"):
    generate("moe", prompts)


@pytest.mark.parametrize(
  "change",
  [
    {"temperature": -0.1},
    {"top_p": 0.0},
    {"top_p": 1.1},
    {"max_tokens": 0},
    {"entropy_temperature": -1.0},
    {"entropy_temperature": float("nan")},
  ],
)
def test_sampling_outside_its_bounds_is_refused(change):
  ((name, value),) = change.items()
  with pytest.raises(ValueError, match=rf"{name.replace('_t', '.t')}={value}"):
    Sampling(**{"temperature": 0.7, "top_p": 0.9, "max_tokens": R, "stop_ids": (), "pad_id": PAD} | change)

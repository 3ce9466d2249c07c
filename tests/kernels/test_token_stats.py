"""Every implementation of token_stats against a float64 softmax; its gradient against the closed form."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from qwenlong_jax.kernels.token_stats import IMPLEMENTATIONS, token_stats, xla

T, D, V = 13, 6, 50
WHOLE = xla.CHUNK_BYTES, xla.TOKENS
CUT = 5 * 8 * 4, 5  # six chunks of 8 columns and one of 2; two pieces of 5 tokens and one of 3
FORWARD, GRADIENT = 1e-5, 1e-4


@pytest.fixture(scope="module", params=[("reference", WHOLE), ("xla", WHOLE), ("xla", CUT)])
def run(request):
  """(hidden, head, target, a, b, temperature) -> ((logprob, entropy), gradients of sum(a logprob + b entropy))."""
  return compiled(*request.param)


def cut(patch, chunk_bytes, tokens):
  patch.setattr(xla, "CHUNK_BYTES", chunk_bytes)
  patch.setattr(xla, "TOKENS", tokens)


@functools.cache
def compiled(implementation, sizes=WHOLE, vocabulary=None):
  @jax.jit
  def run(hidden, head, target, a, b, temperature):
    stats = lambda hidden, head: token_stats(  # noqa: E731
      hidden, head, target, temperature, vocabulary=vocabulary, implementation=implementation
    )
    out, vjp = jax.vjp(stats, hidden, head)
    return out, vjp((a, b))

  def patched(*args):
    with pytest.MonkeyPatch.context() as patch:
      cut(patch, *sizes)
      return run(*args)

  return patched


def oracle(hidden, head, target, a, b, temperature, vocabulary=None):
  hidden, head, a, b = (np.asarray(x, np.float64) for x in (hidden, head, a, b))
  whole, head = head, head[:, :vocabulary]
  z = hidden @ head / temperature
  logp = z - z.max(1, keepdims=True)
  logp -= np.log(np.exp(logp).sum(1, keepdims=True))
  p = np.exp(logp)
  chosen = np.eye(z.shape[1])[target]
  dz = a[:, None] * (chosen - p) - b[:, None] * p * (z - (p * z).sum(1, keepdims=True))
  dhead = np.zeros_like(whole)
  dhead[:, :vocabulary] = hidden.T @ dz / temperature
  return ((chosen * logp).sum(1), -(p * logp).sum(1)), (dz @ head.T / temperature, dhead)


def random_inputs(seed=0, scale=1.0, dtype=jnp.float32, shape=(T, D, V), vocabulary=None):
  """hidden, head, target and the upstream gradients of log-probability and entropy."""
  t, d, v = shape
  random = np.random.default_rng(seed)
  hidden, head = random.normal(0, scale, (t, d)), random.normal(size=(d, v))
  target = random.integers(0, vocabulary or v, t)
  upstream = (jnp.asarray(random.normal(size=t), jnp.promote_types(dtype, jnp.float32)) for _ in range(2))
  return jnp.asarray(hidden, dtype), jnp.asarray(head, dtype), jnp.asarray(target), *upstream


def close(got, want, forward=FORWARD, gradient=GRADIENT, least=0.0):
  for value, wanted in zip(got[0], want[0]):
    np.testing.assert_allclose(value, wanted, rtol=forward, atol=forward * np.abs(wanted).max())
  for value, wanted in zip(got[1], want[1]):
    assert np.linalg.norm(np.asarray(value, np.float64) - wanted) <= gradient * np.linalg.norm(wanted) + least


def check(run, inputs, temperature, forward=FORWARD, gradient=GRADIENT):
  got = run(*inputs, temperature)
  assert all(value.dtype == jnp.promote_types(inputs[0].dtype, jnp.float32) for value in got[0])
  assert [x.dtype for x in got[1]] == [x.dtype for x in inputs[:2]]
  close(got, oracle(*inputs, temperature), forward, gradient)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_logprob_entropy_and_their_gradients(run, temperature):
  check(run, random_inputs(), temperature)


@pytest.mark.parametrize("only", ["logprob", "entropy"])
def test_each_gradient_alone(run, only):
  hidden, head, target, a, b = random_inputs(1)
  check(run, (hidden, head, target, a if only == "logprob" else 0 * a, b if only == "entropy" else 0 * b), 0.7)


@given(st.integers(0, 999), st.sampled_from([0.0, 0.1, 1.0, 5.0, 20.0, 80.0]))
def test_from_flat_to_certain_distributions(run, seed, scale):
  """Scale 0 is uniform (entropy ln V); at 80 logits reach several hundreds and nearly all tokens are certain."""
  inputs = random_inputs(seed, scale)
  (logprob, entropy), _ = run(*inputs, 0.7)
  (wanted, wanted_entropy), _ = oracle(*inputs, 0.7)
  # The logits themselves are rounded.
  rounding = 1e-5 + 5e-7 * np.abs(np.asarray(inputs[0], np.float64) @ np.asarray(inputs[1], np.float64) / 0.7).max()
  np.testing.assert_allclose(logprob, wanted, rtol=1e-5, atol=rounding)
  np.testing.assert_allclose(entropy, wanted_entropy, rtol=1e-5, atol=rounding)
  if scale == 0:
    np.testing.assert_allclose(entropy, np.log(V), rtol=1e-6)


def test_a_common_shift_of_the_logits_costs_the_entropy_no_digits(run):
  """Logits near 1024 that differ by a few, all exact in float32: lse - sum(p z) would lose three digits of seven."""
  hidden, head, *rest = random_inputs(5)
  hidden, head = (jnp.round(x * 8) / 8 for x in (hidden.at[:, 0].set(1.0), head.at[0].set(1024.0)))
  (_, entropy), _ = run(hidden, head, *rest, 1.0)
  (_, wanted), _ = oracle(hidden, head, *rest, 1.0)
  np.testing.assert_allclose(entropy, wanted, atol=5e-6)


@given(st.data())
def test_any_chunks_and_cuts_of_the_vocabulary(data):
  """The last chunk narrower or not, a single one, one column each; what lies past the vocabulary holds NaN."""
  draw = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
  (tokens, rows), (v, width, vocabulary) = draw((5, 2), (4, 9)), draw((12, 5, 11), (12, 4, None), (7, 7, 1), (3, 1, 2))
  inputs = random_inputs(data.draw(st.integers(0, 99)), shape=(tokens, 3, v), vocabulary=vocabulary)
  poisoned = (inputs[0], inputs[1].at[:, vocabulary or v :].set(jnp.nan), *inputs[2:])
  temperature = data.draw(st.floats(0.3, 3.0))
  got = compiled("xla", (min(rows, tokens) * width * 4, rows), vocabulary)(*poisoned, temperature)
  close(got, oracle(*inputs, temperature, vocabulary), least=1e-5)
  np.testing.assert_array_equal(got[1][1][:, vocabulary or v :], 0)


def test_logits_of_a_hand_worked_token(run):
  """Logits ln 1, ln 2, ln 5 (and V - 3 impossible ones): p = 1/8, 1/4, 5/8, entropy 0.900256 nats."""
  head = np.full((D, V), -60.0)
  head[0, :3] = np.log([1, 2, 5])
  hidden = np.zeros((T, D))
  hidden[:, 0] = 1
  target = np.arange(T) % 3
  zero = jnp.zeros(T)
  (logprob, entropy), _ = run(*map(jnp.asarray, (hidden, head, target)), zero, zero, 1.0)
  np.testing.assert_allclose(logprob, np.log([1 / 8, 1 / 4, 5 / 8])[target], rtol=1e-5)
  np.testing.assert_allclose(entropy, 0.900256, rtol=1e-5)


def test_bfloat16_inputs_give_float32_statistics_of_the_rounded_numbers(run):
  """Products of bfloat16 are exact in float32: only the gradients, handed back in bfloat16, are rounded."""
  inputs = random_inputs(3, dtype=jnp.bfloat16)
  check(run, inputs, 1.0, forward=2e-5, gradient=2**-6)


def test_float64_stays_float64(run):
  with jax.enable_x64(True):
    check(run, random_inputs(4, dtype=jnp.float64), 0.7, forward=1e-12, gradient=1e-12)


@pytest.mark.parametrize("fill", [np.nan, np.inf, 1e30])
def test_what_lies_past_the_vocabulary_does_not_exist(fill):
  inputs = random_inputs(6, vocabulary=37)
  hidden, head, *rest = inputs
  want = oracle(*inputs, 0.7, 37)
  for implementation, sizes in (("reference", WHOLE), ("xla", WHOLE), ("xla", CUT)):
    got = compiled(implementation, sizes, 37)(hidden, head.at[:, 37:].set(fill), *rest, 0.7)
    close(got, want)
    np.testing.assert_array_equal(got[1][1][:, 37:], 0)


def test_a_target_that_is_no_token_has_no_probability_and_no_gradient(run):
  hidden, head, target, a, b = random_inputs(7)
  odd = target.at[jnp.array([0, 5, 12])].set(jnp.array([-1, V, 2**31 - 1]))
  missing = (odd < 0) | (odd >= V)
  (logprob, entropy), gradients = run(hidden, head, odd, a, b, 0.7)
  want = oracle(hidden, head, target, jnp.where(missing, 0, a), b, 0.7)
  np.testing.assert_array_equal(logprob == -np.inf, missing)
  close(((logprob[~missing], entropy), gradients), ((want[0][0][~missing], want[0][1]), want[1]))


def test_the_temperature_may_change_without_another_compilation(run):
  inputs = random_inputs(8)

  @functools.partial(jax.jit, static_argnames="implementation")
  def traced(temperature, implementation):
    return token_stats(*inputs[:3], temperature, implementation=implementation)

  for temperature in (0.7, 1.3, jnp.float32(2)):
    for implementation in IMPLEMENTATIONS:
      got = traced(temperature, implementation)
      np.testing.assert_allclose(got, oracle(*inputs, float(temperature))[0], rtol=1e-5, atol=1e-5)
  assert traced._cache_size() <= 2 * len(IMPLEMENTATIONS)  # Python's numbers and an array differ in type
  for implementation in IMPLEMENTATIONS:
    assert jax.grad(lambda t, name=implementation: traced(t, name)[0].sum())(0.7) == 0


def total(hidden, head, target, a, b, **options):
  logprob, entropy = token_stats(hidden, head, target, 0.7, **options)
  return (a * logprob + b * entropy).sum(), (logprob, entropy)


def over(devices, function, out, check_vma):
  mesh = jax.make_mesh((devices,), ("model",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
  specs = (P(), P(None, "model"), P(), P(), P())
  return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=check_vma))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize(
  "devices, vocabulary, implementation",
  [(1, None, "xla"), (2, None, "xla"), (8, 37, "xla"), (8, 37, "reference")],
)
def test_a_vocabulary_cut_over_devices_gives_what_one_device_would(
  devices, vocabulary, implementation, check_vma, monkeypatch
):
  """Statistics and gradients, differentiated outside and inside of the shard_map. Of 48 columns on 8 devices 37 leave
  one of the seventh's and none of the eighth's."""
  cut(monkeypatch, 5 * 2 * 4, 5)
  inputs = random_inputs(9, shape=(T, D, 48), vocabulary=vocabulary)
  want = oracle(*inputs, 0.7, vocabulary)
  inputs = (inputs[0], inputs[1].at[:, vocabulary or 48 :].set(jnp.nan), *inputs[2:])
  loss = functools.partial(total, axis="model", vocabulary=vocabulary, implementation=implementation)
  whole = P(), (P(), P())

  outside = jax.value_and_grad(over(devices, loss, whole, check_vma), (0, 1), has_aux=True)
  (_, stats), gradients = outside(*inputs)
  close((stats, gradients), want)

  def inside(hidden, head, *rest):
    # Without check_vma the objective is the sum of all devices' losses, which are one and the same.
    share = 1 if check_vma else devices
    scaled = lambda *args: (lambda loss, stats: (loss / share, stats))(*loss(*args))  # noqa: E731
    (dhidden, dhead), stats = jax.grad(scaled, (0, 1), has_aux=True)(hidden, head, *rest)
    return stats, (dhidden if check_vma else jax.lax.psum(dhidden, "model"), dhead)

  close(over(devices, inside, ((P(), P()), (P(), P(None, "model"))), check_vma)(*inputs), want)


def test_hidden_states_that_vary_get_their_devices_share():
  inputs = random_inputs(9, shape=(T, D, 48))

  def inside(hidden, head, *rest):
    varying = jax.lax.pcast(hidden, "model", to="varying")
    (dhidden, dhead), stats = jax.grad(functools.partial(total, axis="model"), (0, 1), has_aux=True)(
      varying, head, *rest
    )
    return stats, (jax.lax.psum(dhidden, "model"), dhead)

  close(over(8, inside, ((P(), P()), (P(), P(None, "model"))), True)(*inputs), oracle(*inputs, 0.7))


@pytest.mark.parametrize("implementation", sorted(IMPLEMENTATIONS))
def test_tokens_and_vocabulary_may_both_be_cut(implementation):
  """Each row of devices has its tokens, each column its part of the head, whose gradient is that of all tokens."""
  inputs = random_inputs(10, shape=(12, D, 48))
  mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
  rows, columns = P("data"), P(None, "model")

  def inside(*args):
    loss = functools.partial(total, axis="model", implementation=implementation)
    gradients, stats = jax.grad(loss, (0, 1), has_aux=True)(*args)
    return stats, gradients

  specs = (rows, columns, rows, rows, rows)
  got = jax.jit(jax.shard_map(inside, mesh=mesh, in_specs=specs, out_specs=((rows, rows), (rows, columns))))(*inputs)
  close(got, oracle(*inputs, 0.7))


def test_an_entropy_that_nobody_reads_is_not_computed(monkeypatch):
  """The loop over chunks then carries two numbers of a token and not three, and the backward pass reads one less."""
  cut(monkeypatch, 8 * T * 4, T)
  inputs = random_inputs()[:3]

  def carried(outputs):
    def both(hidden, head, target):
      stats, vjp = jax.vjp(lambda hidden, head: token_stats(hidden, head, target, 0.7)[:outputs], hidden, head)
      return stats, vjp(stats)

    text = jax.jit(both).lower(*inputs).compile().as_text()
    return sorted(line.split("while(")[0].count(f"f32[{T}]") for line in re.findall(r"= \(.* while\(.*", text))

  assert len(carried(1)) == len(carried(2)) == 2
  assert all(one < two for one, two in zip(carried(1), carried(2)))


@pytest.mark.parametrize("implementation", sorted(set(IMPLEMENTATIONS) - {"reference"}))
def test_the_logits_are_never_whole(implementation, monkeypatch):
  """16 MB of logits, 64 KB at a time: neither the statistics nor their gradient hold a quarter of them."""
  tokens, vocabulary = 4096, 1000
  monkeypatch.setattr(xla, "CHUNK_BYTES", 64 * 1024)
  hidden, head = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((tokens, D), (D, vocabulary)))
  target = jax.ShapeDtypeStruct((tokens,), jnp.int32)

  def total(hidden, head, target):
    logprob, entropy = token_stats(hidden, head, target, 0.7, implementation=implementation)
    return logprob.sum() + entropy.sum()

  for function in (total, jax.grad(total, (0, 1))):
    memory = jax.jit(function).lower(hidden, head, target).compile().memory_analysis()
    assert memory.temp_size_in_bytes < tokens * vocabulary * 4 / 4
    shapes = {tuple(x.aval.shape) for x in variables(jax.make_jaxpr(function)(hidden, head, target).jaxpr)}
    assert not [shape for shape in shapes if np.prod(shape) >= tokens * vocabulary]


def variables(jaxpr):
  """The results of every equation, those of loops' and branches' bodies included."""
  for equation in jaxpr.eqns:
    yield from equation.outvars
    for inner in jaxprs_in_params(equation.params):
      yield from variables(inner)


def test_without_a_name_the_door_takes_an_implementation_and_refuses_unknown_ones():
  hidden, head, target, _, _ = random_inputs()
  got, want = (jax.jit(functools.partial(token_stats, implementation=name)) for name in (None, "reference"))
  np.testing.assert_allclose(got(hidden, head, target), want(hidden, head, target), atol=1e-5)
  with pytest.raises(ValueError, match="implementation='fused' is not one of"):
    token_stats(hidden, head, target, implementation="fused")


@pytest.mark.parametrize(
  "hidden, head, target, temperature, message",
  [
    ((T, D + 1), (D, V), (T,), 1.0, r"hidden.shape=\(13, 7\), head.shape=\(6, 50\).*wanted \[T D\], \[D V\], \[T\]"),
    ((1, T, D), (D, V), (T,), 1.0, r"hidden.shape=\(1, 13, 6\)"),
    ((T, D), (D, V), (T, 1), 1.0, r"target.shape=\(13, 1\)"),
    ((T, D), (D, V), (T,), 0.0, "temperature=0.0 must be positive"),
    ((T, D), (D, V), (T,), float("nan"), "temperature=nan must be positive"),
    ((T, D), (D, V), (T,), np.float32(0), "temperature=.*0.* must be positive"),
    ((T, D), (D, V), (T,), np.ones(T), r"jnp.shape\(temperature\)=\(13,\) must be \(\)"),
    ((T, D), (D, 0), (T,), 1.0, "head.shape=.*at least one column"),
  ],
)
def test_the_door_names_what_is_wrong(hidden, head, target, temperature, message):
  with pytest.raises(ValueError, match=message):
    token_stats(jnp.zeros(hidden), jnp.zeros(head), jnp.zeros(target, int), temperature)


def test_the_door_refuses_other_types():
  hidden, head, target, _, _ = random_inputs()
  with pytest.raises(ValueError, match=r"hidden.dtype=dtype\(bfloat16\), head.dtype=dtype\('float32'\); cast"):
    token_stats(hidden.astype(jnp.bfloat16), head, target)
  with pytest.raises(ValueError, match="types disagree"):
    token_stats(hidden.astype(int), head.astype(int), target)
  with pytest.raises(ValueError, match="must be an integer type"):
    token_stats(hidden, head, target.astype(jnp.float32))


@pytest.mark.parametrize("vocabulary", [0, -1, V + 1, 3.5])
def test_the_door_refuses_a_vocabulary_that_is_no_part_of_the_head(vocabulary):
  with pytest.raises(ValueError, match=rf"vocabulary={vocabulary} must be an integer in \[1, 50\]"):
    token_stats(*random_inputs()[:3], vocabulary=vocabulary)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int16, jnp.uint16])
def test_targets_may_be_of_a_type_that_holds_no_size_of_the_vocabulary(dtype):
  hidden, _, target, _, _ = random_inputs()
  head = jnp.asarray(np.random.default_rng(0).normal(size=(D, 2**16 + 4)), jnp.float32)
  want, got = (token_stats(hidden, head, target.astype(kind))[0] for kind in (jnp.int32, dtype))
  np.testing.assert_array_equal(got, want)


def test_a_wide_target_that_is_no_token_stays_none():
  """2**32 and one are the same 32 bits."""
  hidden, head, target, _, _ = random_inputs()
  with jax.enable_x64(True):
    logprob, _ = token_stats(hidden, head, jnp.full(target.shape, 2**32 + 1, jnp.int64))
  np.testing.assert_array_equal(logprob, -np.inf)


def test_the_door_refuses_an_axis_that_is_not_there():
  with pytest.raises(ValueError, match="axis='model' is no mesh axis here; call token_stats inside a shard_map"):
    token_stats(*random_inputs()[:3], axis="model")


def test_no_tokens_give_no_statistics(run):
  (logprob, entropy), (dhidden, dhead) = run(*random_inputs(shape=(0, D, V)), 0.7)
  assert logprob.shape == entropy.shape == (0,) and dhidden.shape == (0, D)
  np.testing.assert_array_equal(dhead, 0)

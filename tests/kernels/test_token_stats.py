"""Every implementation of token_stats against a float64 softmax; its gradient against the closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from qwenlong_jax.kernels.token_stats import IMPLEMENTATIONS, token_stats, xla

T, D, V = 13, 6, 50
CHUNK_BYTES = [4 * V * 4, xla.CHUNK_BYTES]  # four chunks of 4 tokens, 3 slots of padding; and one chunk
FORWARD, GRADIENT = 1e-5, 1e-4


@pytest.fixture(
  scope="module", params=[(name, size) for name in IMPLEMENTATIONS for size in (CHUNK_BYTES if name == "xla" else [0])]
)
def run(request):
  """(hidden, head, target, a, b, temperature) -> ((logprob, entropy), gradients of sum(a logprob + b entropy))."""
  return compiled(*request.param)


@functools.cache
def compiled(implementation, chunk_bytes):
  @functools.partial(jax.jit, static_argnums=5)
  def run(hidden, head, target, a, b, temperature):
    stats = lambda hidden, head: token_stats(hidden, head, target, temperature, implementation=implementation)  # noqa: E731
    out, vjp = jax.vjp(stats, hidden, head)
    return out, vjp((a, b))

  def patched(*args):
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(xla, "CHUNK_BYTES", chunk_bytes or xla.CHUNK_BYTES)
      return run(*args)

  return patched


def oracle(hidden, head, target, a, b, temperature):
  hidden, head, a, b = (np.asarray(x, np.float64) for x in (hidden, head, a, b))
  z = hidden @ head / temperature
  logp = z - z.max(1, keepdims=True)
  logp -= np.log(np.exp(logp).sum(1, keepdims=True))
  p = np.exp(logp)
  chosen = np.eye(z.shape[1])[target]
  dz = a[:, None] * (chosen - p) - b[:, None] * p * (z - (p * z).sum(1, keepdims=True))
  return ((chosen * logp).sum(1), -(p * logp).sum(1)), (dz @ head.T / temperature, hidden.T @ dz / temperature)


def random_inputs(seed=0, scale=1.0, dtype=jnp.float32):
  """hidden, head, target and the upstream gradients of log-probability and entropy."""
  random = np.random.default_rng(seed)
  hidden, head = random.normal(0, scale, (T, D)), random.normal(size=(D, V))
  upstream = (jnp.asarray(random.normal(size=T), jnp.float32) for _ in range(2))
  return jnp.asarray(hidden, dtype), jnp.asarray(head, dtype), jnp.asarray(random.integers(0, V, T)), *upstream


def check(run, inputs, temperature, forward=FORWARD, gradient=GRADIENT):
  got, got_gradients = run(*inputs, temperature)
  want, want_gradients = oracle(*inputs, temperature)
  for value, wanted in zip(got, want):
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, wanted, rtol=forward, atol=forward * np.abs(wanted).max())
  for value, wanted in zip(got_gradients, want_gradients):
    assert np.linalg.norm(np.asarray(value, np.float64) - wanted) < gradient * np.linalg.norm(wanted)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_logprob_entropy_and_their_gradients(run, temperature):
  check(run, random_inputs(), temperature)


@pytest.mark.parametrize("only", ["logprob", "entropy"])
def test_each_gradient_alone(run, only):
  hidden, head, target, a, b = random_inputs(1)
  check(run, (hidden, head, target, a if only == "logprob" else 0 * a, b if only == "entropy" else 0 * b), 0.7)


@given(st.integers(0, 999), st.sampled_from([0.0, 0.1, 1.0, 5.0, 20.0]))
def test_from_flat_to_certain_distributions(run, seed, scale):
  """Scale 0 is uniform (entropy ln V); at 20 logits reach a hundred and most tokens are certain."""
  inputs = random_inputs(seed, scale)
  (logprob, entropy), _ = run(*inputs, 0.7)
  (wanted, wanted_entropy), _ = oracle(*inputs, 0.7)
  np.testing.assert_allclose(logprob, wanted, rtol=1e-5, atol=1e-4)
  np.testing.assert_allclose(entropy, wanted_entropy, rtol=1e-5, atol=3e-5)
  if scale == 0:
    np.testing.assert_allclose(entropy, np.log(V), rtol=1e-6)


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
  ],
)
def test_the_door_names_what_is_wrong(hidden, head, target, temperature, message):
  with pytest.raises(ValueError, match=message):
    token_stats(jnp.zeros(hidden), jnp.zeros(head), jnp.zeros(target, int), temperature)

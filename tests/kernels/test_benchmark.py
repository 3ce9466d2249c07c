"""What the benchmark sets beside each other computes the same, gradients too where both have them."""

import functools

import jax
import numpy as np
import pytest

from qwenlong_jax.kernels.flash_attention import benchmark

LENGTH = 64


def operands(seed=0):
  keys = jax.random.split(jax.random.key(seed), 4)
  return [jax.random.normal(key, (1, LENGTH, heads, 16)) for key, heads in zip(keys, (4, 2, 2, 4))]


def with_gradients(attend):
  q, k, v, g = operands()
  out, vjp = jax.vjp(attend, q, k, v)
  return out, *vjp(g)


@pytest.mark.parametrize("mask", ["causal", "prefix"])
def test_contenders_agree(mask):
  ours, theirs = (with_gradients(jax.jit(attend)) for attend in benchmark.contenders(mask, LENGTH).values())
  for got, wanted in zip(ours[: 4 if mask == "causal" else 1], theirs):  # two calls: see there
    np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_a_repeated_prefix_is_the_same_attention():
  causal = lambda q, k, v, length: jax.nn.dot_product_attention(q, k, v, is_causal=True)  # noqa: E731
  ours = with_gradients(next(iter(benchmark.contenders("prefix", LENGTH).values())))
  for got, wanted in zip(with_gradients(functools.partial(benchmark.repeated, causal)), ours):
    np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_splash_attention_is_called_right(monkeypatch):
  """In interpret mode, at a length that is not whole blocks."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

  make = splash.make_splash_mqa_single_device
  monkeypatch.setattr(splash, "make_splash_mqa_single_device", functools.partial(make, interpret=True))
  keys = jax.random.split(jax.random.key(0), 3)
  heads = benchmark.HEADS, benchmark.KV_HEADS, benchmark.KV_HEADS
  q, k, v = (jax.random.normal(key, (1, 200, n, benchmark.HEAD_DIM)) for key, n in zip(keys, heads))
  wanted = jax.nn.dot_product_attention(q, k, v, is_causal=True)
  np.testing.assert_allclose(benchmark._splash(q, k, v, length=200), wanted, atol=2e-5)


def test_work_is_counted_by_the_mask():
  """Of 64 slots: a prefix of 32 and branches of 4 that see it and themselves, each pair of slots once."""
  segment, position = (np.asarray(x)[0] for x in benchmark.slots_of("prefix", LENGTH))
  seen = ((segment[None] == segment[:, None]) | (segment[None] == 0)) & (position[None] <= position[:, None])
  counted = benchmark._shown_behind_prefix(LENGTH)
  assert counted == seen.sum() - LENGTH / 2  # the diagonal counts half
  timing = benchmark.Timing(LENGTH, "prefix", "ours", forward=2.0, both=7.0, flops=8.0)
  assert timing.rates() == (4.0, 4.0)
  with pytest.raises(ValueError, match="length=60 must divide by 16"):
    benchmark.slots_of("prefix", 60)

"""What the benchmark sets beside each other computes the same, gradients too where both have them."""

import functools
import importlib.util

import jax
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from qwenlong_jax.kernels.flash_attention import benchmark
from qwenlong_jax.kernels.ring_attention import benchmark as over_a_ring
from qwenlong_jax.kernels.ring_attention import from_ring

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
  ours = with_gradients(jax.jit(next(iter(benchmark.contenders("prefix", LENGTH).values()))))
  for got, wanted in zip(with_gradients(jax.jit(functools.partial(benchmark.repeated, causal))), ours):
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


@pytest.fixture
def few_heads(monkeypatch):
  for name, value in (("HEADS", 2), ("KV_HEADS", 1), ("HEAD_DIM", 8)):
    for module in (benchmark, over_a_ring):
      monkeypatch.setattr(module, name, value)


@pytest.mark.parametrize("mask", ["causal", "prefix"])
def test_over_a_ring_it_is_the_attention_that_stands_beside_it(mask, few_heads):
  found = over_a_ring.contenders(mask, LENGTH, over_a_ring.ring_of(jax.devices()[:4]))
  assert [devices for _, _, devices in found.values()] == [4, 4, 1, 1]
  ring, gather, whole = (jax.jit(found[name][0])(*found[name][1]) for name in ("ring", "gather", "ours (xla)"))
  for dealt in (ring, gather):
    np.testing.assert_allclose(*(np.asarray(x, np.float32) for x in (from_ring(dealt, 4, 16), whole)), atol=0.02)


def travelling(jaxpr, ring, times=1):
  """Bytes of keys, values and gradients that a device sends in the collectives of a program."""
  total = 0
  for one in jaxpr.eqns:
    shape = lambda x: x.aval.size * x.aval.dtype.itemsize * (x.aval.ndim > 3)  # noqa: E731
    if one.primitive.name == "ppermute":
      total += times * sum(shape(x) for x in one.outvars) * (ring > 1)
    elif one.primitive.name in ("all_gather", "reduce_scatter"):
      whole = one.outvars if one.primitive.name == "all_gather" else one.invars
      total += times * sum(shape(x) for x in whole) * (ring - 1) // ring
    again = times * one.params["length"] if one.primitive.name == "scan" else times
    for inner in jaxprs_in_params(one.params):
      total += travelling(inner, ring, again)
  return total


@pytest.mark.parametrize("implementation", ["ring", "gather"])
@pytest.mark.parametrize("ring", [1, 2, 8])
def test_what_travels_is_counted_as_the_program_sends_it(implementation, ring, few_heads):
  mesh = over_a_ring.ring_of(jax.devices()[:ring])
  attend, operands, _ = over_a_ring.contenders("causal", LENGTH, mesh)[implementation]
  programs = attend, over_a_ring.with_gradients(attend)
  counted = [travelling(jax.make_jaxpr(program)(*operands).jaxpr, ring) for program in programs]
  assert over_a_ring.sent(implementation, LENGTH, ring) == tuple(counted)


def test_what_does_not_fit_says_so_beside_what_does(few_heads, capsys, monkeypatch):
  def full(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

  monkeypatch.setattr(over_a_ring, "MASKS", ["prefix"])
  monkeypatch.setattr(benchmark, "contenders", lambda *_: {"full": full})
  over_a_ring.times([LENGTH])
  head, columns, *lines = capsys.readouterr().out.splitlines()
  assert head.startswith("8 of ")
  ring, gather, whole = (line.split() for line in lines)
  assert ring[:4] == [str(LENGTH), "prefix", "ring", "8"] and gather[2:4] == ["gather", "8"]
  assert len(ring) == len(columns.split()) - 2 == 12  # two of which are "forward ms" and "both ms"
  assert ring[6] == "-" and float(ring[7]) > 0  # a CPU's peak is not known; it sends
  assert whole[2:4] == ["full", "1"] and whole.count("RESOURCE_EXHAUSTED:") == 2


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed")
def test_the_memory_of_a_ring_of_tpus_and_that_its_transfers_are_hidden(capsys):
  over_a_ring.memories(["v5p"])
  _, ring, gather = (line.split() for line in capsys.readouterr().out.splitlines())
  assert ring[:2] == ["v5p:2x2x1", "ring"] and ring[3:] == ["3", "of", "3"]
  assert gather[:2] == ["v5p:2x2x1", "gather"] and gather[3:] == ["-"]
  assert all(100 < float(line[2]) < 1000 for line in (ring, gather))  # in the main q's size in float32, a few times

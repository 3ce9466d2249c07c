"""Attention in float64, with its gradients, written from the mask's definition; and what the attention tests draw."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # its verdict on races has no public name
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks


@contextlib.contextmanager
def interpreted():
  """TPU kernels run on the CPU; memory that nobody wrote holds NaN; a race between copies and computation fails.

  What runs in here must be waited for in here.
  """
  params = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
  with pltpu.force_tpu_interpret_mode(params):
    interpret_pallas_call.races = None
    try:
      yield
    except jax.errors.JaxRuntimeError as error:  # newer jax stops at a race
      assert "race" not in str(error).lower(), f"a race: {error}"
      raise
  assert not (interpret_pallas_call.races and interpret_pallas_call.races.races_found), "a race: see stdout"


def sees(segment, position, key_segment, key_position):
  """[query, key]"""
  q, k = segment[:, None], key_segment[None, :]
  return (q >= 0) & (k >= 0) & ((k == q) | (k == 0)) & (key_position[None, :] <= position[:, None])


def oracle(q, k, v, segment, position, cotangent, lse_cotangent=None, keys=None):
  """Output, log-sum-exp and gradients in float64, a row and a head at a time, by the softmax's own derivative."""
  q, k, v, cotangent = (np.asarray(x, np.float64) for x in (q, k, v, cotangent))
  out, dq, dk, dv = (np.zeros_like(x) for x in (q, q, k, v))
  rows, slots, heads, size = q.shape
  lse = np.full((rows, slots, heads), -1e30)
  lse_cotangent = np.zeros_like(lse) if lse_cotangent is None else np.asarray(lse_cotangent, np.float64)
  for b in range(rows):
    mask = sees(segment[b], position[b], *(x[b] for x in keys or (segment, position)))
    for h in range(heads):
      g = h * k.shape[2] // heads
      scores = np.where(mask, q[b, :, h] @ k[b, :, g].T / np.sqrt(size), -np.inf)
      weights = np.zeros_like(scores)
      for i in np.nonzero(mask.any(1))[0]:
        weights[i] = np.exp(scores[i] - scores[i].max())
        lse[b, i, h] = scores[i].max() + np.log(weights[i].sum())
        weights[i] /= weights[i].sum()
      out[b, :, h] = weights @ v[b, :, g]
      inner = cotangent[b, :, h] @ v[b, :, g].T
      inner += lse_cotangent[b, :, h, None] - (weights * inner).sum(1, keepdims=True)
      change = weights * inner / np.sqrt(size)
      dq[b, :, h] = change @ k[b, :, g]
      dk[b, :, g] += change.T @ q[b, :, h]
      dv[b, :, g] += weights.T @ cotangent[b, :, h]
  return out, lse, (dq, dk, dv)


def random_inputs(shape, seed=0, dtype=jnp.float32):
  """q, k, v and the cotangent of the output."""
  b, l, h, k, d = shape
  random = np.random.default_rng(seed)
  return [jnp.asarray(random.normal(size=(b, l, n, d)), dtype) for n in (h, k, k, h)]


def error(got, want):
  """Relative, except to what is 0 but for rounding."""
  return np.linalg.norm(np.asarray(got, np.float64) - want) / max(np.linalg.norm(want), 0.1)


def splash_errors(q, k, v, segment, position, cotangent):
  """Errors of the output and the gradients that JAX's splash attention makes in interpret mode, of one row of blocks of
  128 slots: what it is usual to err. Its users scale q themselves, in its type."""
  length, heads, size = q.shape[1:]
  blocks = dict.fromkeys(("block_q", "block_kv", "block_kv_compute"), 128)
  blocks |= dict.fromkeys(("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq"), 128)
  kernel = splash.make_splash_mqa_single_device(
    masks.MultiHeadMask([masks.CausalMask((length, length))] * (heads // k.shape[2])),
    block_sizes=splash.BlockSizes(**blocks),
    interpret=True,
  )
  ids = splash.SegmentIds(*[jnp.asarray(segment[0], jnp.int32)] * 2)

  @jax.jit
  def run(q, k, v, cotangent):
    def attend(q, k, v):
      q, k, v = (jnp.moveaxis(x[0], 1, 0) for x in ((q.astype(jnp.float32) * size**-0.5).astype(q.dtype), k, v))
      out = jax.vmap(lambda *one: kernel(*one, ids))(q.reshape(len(k), -1, length, size), k, v)
      return jnp.moveaxis(out.reshape(heads, length, size), 0, 1)[None]

    out, vjp = jax.vjp(attend, q, k, v)
    return out, *vjp(cotangent)

  wanted, _, gradients = oracle(q, k, v, segment, position, cotangent)
  return [error(*pair) for pair in zip(run(q, k, v, cotangent), (wanted, *gradients))]


@st.composite
def rows(draw, slots):
  """Segments and positions of one row: any cut into prefix, branches and padding, the last two also interleaved."""
  cuts = sorted(draw(st.lists(st.integers(0, slots), min_size=4, max_size=4)))
  prefix = cuts[0]
  segment = np.repeat([0, 1, 2, 3, -1], np.diff([0, *cuts, slots]))
  if draw(st.booleans()):
    segment[prefix:] = np.random.default_rng(draw(st.integers(0, 99))).permutation(segment[prefix:])
  position = np.zeros(slots, int)
  for one in range(-1, 4):
    position[segment == one] = np.arange((segment == one).sum()) + (prefix if one > 0 else 0)
  return segment, position

"""Qwen3 in Flax NNX, dense and mixture of experts: one decoder for training, prefill and decoding.

Consecutive layers of one kind are stacked and scanned (`runs`): all of them for the published models, several where
`mlp_only_layers` or `decoder_sparse_step` mix dense and sparse layers.

Letters: B rows, L slots, T = B*L tokens (activations travel flat, [T D]: one matmul per weight), D model width, H query
heads, K key-value heads, A head dimension, V vocabulary, P prompts, G branches, S prefix slots, R suffix slots, M
layers of mixed experts, E experts of each token.
"""

import itertools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PyTree

from qwenlong_jax.kernels.flash_attention import flash_attention
from qwenlong_jax.kernels.flash_attention.operands import RESULTS
from qwenlong_jax.kernels.precision import accumulator
from qwenlong_jax.kernels.prefix_decode import prefix_decode
from qwenlong_jax.models import rotary
from qwenlong_jax.models.moe import Cut, MoE, added
from qwenlong_jax.models.presets import Qwen3Config

# A stack of so few layers is unrolled: the compiler fuses across them, and a loop would hardly compile faster.
UNROLLED = 4

# Keys and values of all layers: one array each, layers first.
Cache = tuple[Array, Array]
# q [T H A], k [T K A], v [T K A] -> [T H*A]
Attend = Callable[[Array, Array, Array], Array]
# Parameters as this device holds them, and their path in the model -> whole (`parallelism.rules.gather`, or `held`).
Fetch = Callable[..., PyTree]


def held(weights: PyTree, *path: str | int) -> PyTree:
  """The `Fetch` of parameters that are whole already."""
  return weights


def rms_norm(x: Float[Array, "*n D"], weight: Float[Array, " D"], eps: float) -> Float[Array, "*n D"]:
  """x / rms(x) * weight, the statistics in float32."""
  high = x.astype(accumulator(x))
  high = high * jax.lax.rsqrt((high * high).mean(-1, keepdims=True) + eps)
  return high.astype(x.dtype) * weight.astype(x.dtype)


class MLP(nnx.Module):
  """SwiGLU. Parameters: gate and up [D F], down [F D]; where it is cut this device's share of the width F."""

  def __init__(self, config: Qwen3Config, rngs: nnx.Rngs, param_dtype: jnp.dtype):
    d, f = config.hidden_size, config.intermediate_size
    normal = lambda *shape: nnx.Param(  # noqa: E731
      jax.random.normal(rngs.params(), shape, param_dtype) * config.initializer_range
    )
    self.gate, self.up, self.down = normal(d, f), normal(d, f), normal(f, d)

  def __call__(self, x: Float[Array, "T D"], cut: Cut, experts: Array | None = None) -> tuple[Array, None]:
    """As `MoE`, without experts."""
    gate, up, down = (w[...].astype(x.dtype) for w in (self.gate, self.up, self.down))
    if cut.axis is not None and cut.own_rows:
      whole = lambda w, dimension: jax.lax.all_gather(w, cut.axis, axis=dimension, tiled=True)  # noqa: E731
      gate, up, down = whole(gate, 1), whole(up, 1), whole(down, 0)
    out = (jax.nn.silu(x @ gate) * (x @ up)) @ down
    return out if cut.axis is None or cut.own_rows else added(out, cut.axis), None


class Attention(nnx.Module):
  """Grouped-query attention with RMSNorm per head on q and k. Parameters: q [D H*A], k and v [D K*A], o [H*A D]."""

  def __init__(self, config: Qwen3Config, rngs: nnx.Rngs, param_dtype: jnp.dtype):
    d, a = config.hidden_size, config.head_dim
    normal = lambda *shape: nnx.Param(  # noqa: E731
      jax.random.normal(rngs.params(), shape, param_dtype) * config.initializer_range
    )
    queries, keys = config.num_attention_heads * a, config.num_key_value_heads * a
    self.q, self.k, self.v, self.o = normal(d, queries), normal(d, keys), normal(d, keys), normal(queries, d)
    self.q_norm, self.k_norm = nnx.Param(jnp.ones(a, param_dtype)), nnx.Param(jnp.ones(a, param_dtype))
    self.head_dim, self.eps = a, config.rms_norm_eps

  def __call__(
    self, x: Float[Array, "T D"], cos: Array, sin: Array, attend: Attend
  ) -> tuple[Float[Array, "T D"], tuple[Array, Array]]:
    """The layer's output, and its keys and values [T K A]."""
    q, k, v = ((x @ w[...].astype(x.dtype)).reshape(len(x), -1, self.head_dim) for w in (self.q, self.k, self.v))
    q = rotary.rotate(rms_norm(q, self.q_norm[...], self.eps), cos, sin)
    k = rotary.rotate(rms_norm(k, self.k_norm[...], self.eps), cos, sin)
    return attend(q, k, v) @ self.o[...].astype(x.dtype), (k, v)


class Block(nnx.Module):
  """One decoder layer; `kind` is "dense" or "moe"."""

  def __init__(self, config: Qwen3Config, kind: str, rngs: nnx.Rngs, param_dtype: jnp.dtype):
    ones = lambda: nnx.Param(jnp.ones(config.hidden_size, param_dtype))  # noqa: E731
    self.attention_norm, self.mlp_norm = ones(), ones()
    self.attention = Attention(config, rngs, param_dtype)
    self.mlp = (MoE if kind == "moe" else MLP)(config, rngs, param_dtype)
    self.eps = config.rms_norm_eps

  def __call__(
    self,
    x: Float[Array, "T D"],
    angles: tuple[Array, Array],
    attend: Attend,
    cut: Cut,
    experts: Int[Array, "T K"] | None = None,
    keep: Callable | None = None,
  ) -> tuple[Float[Array, "T D"], tuple[tuple[Array, Array], Int[Array, "T K"] | None]]:
    """(output, ((keys, values) [T K A], the chosen experts)); `angles` are cos and sin, `experts` as `MoE`, `keep` the
    policy of a layer that is recomputed."""
    attention = lambda x: self.attention(rms_norm(x, self.attention_norm[...], self.eps), *angles, attend)  # noqa: E731
    if keep is not None:
      # Apart, so that queries and keys are made again when the experts' backward pass is over and not beside it.
      attention = jax.checkpoint(attention, policy=keep)
    attended, kv = attention(x)
    x = x + attended
    out, experts = self.mlp(rms_norm(x, self.mlp_norm[...], self.eps), cut, experts)
    return x + out, (kv, experts)


class Qwen3(nnx.Module):
  """The decoder. Parameters: embedding [V D], `runs` of stacked Blocks, norm [D], head [D V] unless tied.

  Args:
    dtype: of the computation; parameters are cast where they are used.
    remat: recompute each layer in the backward pass, but for its attention, instead of keeping its activations.
    offload: of what is kept, attention's results wait in the hosts' memory.
    together: of so many layers only the first one's input is kept; above 1 their feed-forward is recomputed twice.
  """

  def __init__(
    self,
    config: Qwen3Config,
    *,
    rngs: nnx.Rngs,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype = jnp.float32,
    remat: bool = False,
    offload: bool = False,
    together: int = 1,
  ):
    self.config, self.dtype, self.remat, self.offload = config, dtype, remat, offload
    self.together = together
    normal = lambda *shape: nnx.Param(  # noqa: E731
      jax.random.normal(rngs.params(), shape, param_dtype) * config.initializer_range
    )
    self.embedding = normal(config.vocab_size, config.hidden_size)
    self.runs = nnx.List(stack(config, kind, count, rngs, param_dtype) for kind, count in runs_of(config))
    self.norm = nnx.Param(jnp.ones(config.hidden_size, param_dtype))
    self.head = None if config.tie_word_embeddings else normal(config.hidden_size, config.vocab_size)

  def __call__(
    self,
    tokens: Int[Array, "B L"],
    positions: Int[Array, "B L"],
    segments: Int[Array, "B L"],
    *,
    attention: Callable = flash_attention,
    fetch: Fetch = held,
    experts: Int[Array, "M B L E"] | None = None,
  ) -> Float[Array, "B L D"]:
    """Hidden states after the final norm. Who sees whom: `kernels.flash_attention`.

    `attention` takes its operands; `ring_attention` where the L slots are a device's share. `fetch` makes a layer's
    parameters whole where they are cut over devices. `experts`: the E of each token that the M layers of mixed experts
    are to choose.
    """
    return self.prefill(tokens, positions, segments, attention=attention, fetch=fetch, experts=experts)[0]

  def prefill(
    self,
    tokens: Int[Array, "B L"],
    positions: Int[Array, "B L"],
    segments: Int[Array, "B L"],
    *,
    attention: Callable = flash_attention,
    fetch: Fetch = held,
    axis: str | None = None,
    experts: Int[Array, "M B L E"] | None = None,
  ) -> tuple[Float[Array, "B L D"], Cache, Int[Array, "M B L E"] | None]:
    """(hidden states, keys and values [layers B K L A] each, the chosen experts); arguments as `__call__`.

    `axis`: inside `shard_map`, the L slots are this device's of those cut over this mesh axis, over which parameters
    lie as for `decode`.
    """
    b, l = tokens.shape

    def attend(q: Array, k: Array, v: Array, _: Array) -> Array:
      q, k, v = (x.reshape(b, l, -1, self.config.head_dim) for x in (q, k, v))
      return attention(q, k, v, segments, positions).reshape(b * l, -1)

    flat = None if experts is None else experts.reshape(len(experts), b * l, -1)
    x, kv, flat = self._decoder(tokens.reshape(-1), positions.reshape(-1), attend, fetch, Cut(axis, True), flat)
    k, v = (jnp.moveaxis(c.reshape(len(c), b, l, -1, self.config.head_dim), 2, 3) for c in kv)
    return x.reshape(b, l, -1), (k, v), None if flat is None else flat.reshape(len(flat), b, l, -1)

  def decode(
    self,
    tokens: Int[Array, "P G"],
    positions: Int[Array, "P G"],
    prefix: Cache,
    prefix_length: Int[Array, " P"],
    suffix: Cache,
    suffix_length: Int[Array, "P G"],
    *,
    axis: str | None = None,
  ) -> tuple[Float[Array, "P G D"], Cache, Int[Array, "M P G E"] | None]:
    """One token of each branch, read-only on the caches.

    Args:
      prefix: [layers P K S A] each, as from `prefill`.
      suffix: [layers P G K R A] each.
      axis: inside `shard_map`, the slots of the caches are cut over this mesh axis (`prefix_decode`), and experts,
        widths of dense layers and, where it divides, the head's vocabulary (`parallelism.rules.decoding`).

    Returns:
      hidden states; the new token's keys and values [layers P G K A], for the caller to write; the chosen experts.
    """
    p, g = tokens.shape

    def attend(q: Array, k: Array, v: Array, layer: Array) -> Array:
      q, k, v = (x.reshape(p, g, -1, self.config.head_dim) for x in (q, k, v))
      return prefix_decode(q, k, v, prefix, prefix_length, suffix, suffix_length, layer, axis=axis).reshape(p * g, -1)

    x, kv, experts = self._decoder(tokens.reshape(-1), positions.reshape(-1), attend, cut=Cut(axis))
    k, v = (c.reshape(len(c), p, g, -1, self.config.head_dim) for c in kv)
    return x.reshape(p, g, -1), (k, v), None if experts is None else experts.reshape(len(experts), p, g, -1)

  def logits(self, hidden: Float[Array, "*n D"], axis: str | None = None) -> Float[Array, "*n V"]:
    """Float32 logits; for a few tokens at a time (`kernels.token_stats` for many). `axis` as `decode`."""
    logits = jnp.matmul(hidden, self.head_weight(), preferred_element_type=accumulator(hidden))
    if axis is not None and logits.shape[-1] < self.config.vocab_size:
      logits = jax.lax.all_gather(logits, axis, axis=logits.ndim - 1, tiled=True)
    return logits

  def head_weight(self, fetch: Fetch = held) -> Float[Array, "D V"]:
    """The output projection in the computation's dtype: the embedding, transposed, where they are tied."""
    if self.head is None:
      return fetch(self.embedding[...].astype(self.dtype), "embedding").T
    return fetch(self.head[...].astype(self.dtype), "head")

  def _decoder(
    self,
    tokens: Int[Array, " T"],
    positions: Int[Array, " T"],
    attend: Callable,
    fetch: Fetch = held,
    cut: Cut = Cut(),  # noqa: B008
    experts: Int[Array, "M T E"] | None = None,
  ) -> tuple[Float[Array, "T D"], tuple[Array, Array], Int[Array, "M T E"] | None]:
    """(hidden states, keys and values [layers T K A], the chosen experts); `attend` also takes the layer's index."""
    config = self.config
    inverse, factor = rotary.frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    angles = rotary.angles(positions, inverse, factor)
    # Looked up in the master parameters' precision, in which a frequent token's gradients are then added up.
    x = fetch(self.embedding[...], "embedding")[tokens].astype(self.dtype)
    found: list[tuple] = []
    first, mixed = 0, 0
    for number, (run, (kind, count)) in enumerate(zip(self.runs, runs_of(config), strict=True)):
      graph, weights = nnx.split(run)

      def layer(x: Array, scanned: tuple, graph: nnx.GraphDef = graph, number: int = number) -> tuple:
        (weights, nothing), index, chosen = scanned
        weights = fetch(_cast(weights, nothing, self.dtype), "runs", number)
        seen = lambda q, k, v: attend(q, k, v, index)  # noqa: E731
        return nnx.merge(graph, weights)(x, angles, seen, cut, chosen, self._kept())

      chosen = None if experts is None or kind == "dense" else experts[mixed : mixed + count]
      indices = jnp.arange(first, first + count, dtype=jnp.int32)
      outputs: tuple
      x, outputs = self._scan(layer, x, (_tapped(weights, self.dtype), indices, chosen), count)
      found.append(outputs)
      first, mixed = first + count, mixed + count * (kind == "moe")
    x = rms_norm(x, fetch(self.norm[...], "norm"), config.rms_norm_eps)
    kv = jax.tree.map(lambda *c: jnp.concatenate(c), *(kv for kv, _ in found))
    routed = [chosen for _, chosen in found if chosen is not None]
    return x, kv, jnp.concatenate(routed) if routed else None

  def _scan(self, layer: Callable, x: Array, scanned: PyTree, count: int) -> tuple[Array, PyTree]:
    """(x, stacked outputs) of `layer` after layer, `count` of them; recomputed where they are to be.

    Raises:
      ValueError: they cannot be taken `together`.
    """
    short = count <= UNROLLED
    # Where a loop keeps the two passes apart that is enough, but not for the compiler to tell what waits on the host.
    apart = short or self.offload
    again = lambda layer: jax.checkpoint(layer, policy=self._kept(), prevent_cse=apart)  # noqa: E731
    if not self.remat or self.together == 1:
      return jax.lax.scan(again(layer) if self.remat else layer, x, scanned, unroll=short)
    if count % self.together:
      raise ValueError(f"{count} layers of one kind after each other do not divide by together={self.together}")
    several = lambda x, scanned: jax.lax.scan(again(layer), x, scanned)  # noqa: E731
    scanned = jax.tree.map(lambda y: y.reshape(-1, self.together, *y.shape[1:]), scanned)
    x, outputs = jax.lax.scan(again(several), x, scanned)
    return x, jax.tree.map(lambda y: y.reshape(count, *y.shape[2:]), outputs)

  def _kept(self) -> Callable | None:
    """The policy of layers that are recomputed."""
    if not self.remat:
      return None
    if not self.offload:
      return jax.checkpoint_policies.save_only_these_names(RESULTS)
    return jax.checkpoint_policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=[RESULTS],
      offload_src="device",
      offload_dst="pinned_host",
    )


def _tapped(weights: PyTree, dtype: jnp.dtype) -> tuple[PyTree, PyTree | None]:
  """(stacked weights, what is to be added to them in `dtype` (`_cast`): nothing, by which their gradient comes back).

  So a scan stacks the gradients in the type in which a layer found them. It would in the weights' own, twice as large.
  """
  if all(w.dtype == dtype for w in jax.tree.leaves(weights)):
    return weights, None
  return jax.lax.stop_gradient(weights), _nothing(weights, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _nothing(weights: PyTree, dtype: jnp.dtype) -> PyTree:
  return jax.tree.map(lambda w: jnp.zeros_like(w, dtype), weights)


_nothing.defvjp(
  lambda weights, dtype: (_nothing(weights, dtype), jax.tree.map(lambda w: jnp.zeros((), w.dtype), weights)),
  lambda dtype, like, gradients: (jax.tree.map(lambda g, w: g.astype(w.dtype), gradients, like),),
)


def _cast(weights: PyTree, nothing: PyTree | None, dtype: jnp.dtype) -> PyTree:
  """A layer's weights in the computation's type."""
  if nothing is None:
    return weights

  def cast(w: Array, nothing: Array) -> Array:
    # By way of their bits, or the compiler casts the weights of all layers ahead and keeps them.
    bits = jax.lax.bitcast_convert_type(w, f"uint{8 * w.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(jax.lax.optimization_barrier(bits), w.dtype).astype(dtype) + nothing

  return jax.tree.map(cast, weights, nothing)


def stack(config: Qwen3Config, kind: str, count: int, rngs: nnx.Rngs, param_dtype: jnp.dtype) -> Block:
  """A Block whose parameters hold `count` layers, layers first."""
  return nnx.vmap(lambda rngs: Block(config, kind, rngs, param_dtype))(rngs.split(count))


def runs_of(config: Qwen3Config) -> list[tuple[str, int]]:
  """(kind, number of layers) of each stretch of equal layers, in order."""
  return [(kind, len(list(layers))) for kind, layers in itertools.groupby(config.layer_kinds)]


# Our path below a stacked Block -> Hugging Face's path below `model.layers.N`; "{e}" counts experts.
_LAYER_NAMES: dict[tuple[str, ...], str] = {
  ("attention_norm",): "input_layernorm.weight",
  ("mlp_norm",): "post_attention_layernorm.weight",
  **{("attention", x): f"self_attn.{x}_proj.weight" for x in "qkvo"},
  **{("attention", f"{x}_norm"): f"self_attn.{x}_norm.weight" for x in "qk"},
}
_MLP_NAMES: dict[str, dict[tuple[str, ...], str]] = {
  "dense": {("mlp", x): f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
  "moe": {
    ("mlp", "router"): "mlp.gate.weight",
    **{("mlp", x): f"mlp.experts.{{e}}.{x}_proj.weight" for x in ("gate", "up", "down")},
  },
}


def parameter_names(config: Qwen3Config) -> dict[tuple, list[str]]:
  """Path of each parameter -> the Hugging Face tensors it is made of, in the order in which they are stacked.

  A stacked parameter lists its layers (for experts: layer by layer, expert by expert). Hugging Face's matrices are
  [out, in], ours [in, out]: each 2-D tensor but the embedding is transposed.
  """
  names: dict[tuple, list[str]] = {("embedding",): ["model.embed_tokens.weight"], ("norm",): ["model.norm.weight"]}
  if not config.tie_word_embeddings:
    names["head",] = ["lm_head.weight"]
  first = 0
  for index, (kind, count) in enumerate(runs_of(config)):
    for path, name in (_LAYER_NAMES | _MLP_NAMES[kind]).items():
      experts = range(config.num_experts) if "{e}" in name else range(1)
      names["runs", index, *path] = [
        f"model.layers.{layer}.{name.format(e=expert)}" for layer in range(first, first + count) for expert in experts
      ]
    first += count
  return names

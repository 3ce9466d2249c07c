"""Hugging Face checkpoints in and out, piece by piece: one device's part of a parameter is loaded, one layer saved.

The file format (an 8-byte length, a JSON header of name -> dtype, shape and byte range, then the bytes) is read and
written here rather than by its library: files are mapped, so that a process reads only the slices that its devices
hold, and shards are written as their tensors arrive.

Letters: N layers of one run, E experts, D and F any two widths.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import PyTree

from qwenlong_jax.models import qwen3
from qwenlong_jax.models.presets import Qwen3Config, from_hf, to_hf

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
BLOCK = 2048  # rows that are turned and written at a time: what a strip of them touches stays in the cache
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_config(folder: str | Path) -> Qwen3Config:
  """The configuration in a checkpoint's config.json; errors as `presets.from_hf`."""
  return from_hf(json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")))


def load(
  folder: str | Path, config: Qwen3Config, shardings: PyTree | None = None, dtype: jnp.dtype = jnp.float32
) -> nnx.State:
  """The parameters of `Qwen3(config)` from a folder with model.safetensors or an index of shards.

  Experts may be stored one by one (as published) or fused (`mlp.experts.gate_up_proj`). All names, shapes and dtypes
  are checked before anything is read. Values are exact where `dtype` is the file's or wider.

  Args:
    shardings: a tree of shardings like the parameters; each process then reads only what its devices hold, and the
      host holds no more than what one device gets of one parameter.

  Raises:
    FileNotFoundError: the folder or its index lacks a file.
    ValueError: a tensor is missing, surplus, misshapen, of another dtype, or differs from the one it is tied to.
  """
  tensors = _open(Path(folder))
  names, abstract = qwen3.parameter_names(config), _abstract(config)
  leaves, structure = jax.tree.flatten(abstract)
  paths = _paths(abstract)
  tensors = _split_fused(tensors, config)
  shapes = {name: shape for path, leaf in zip(paths, leaves) for name, shape in _parts(path, names[path], leaf.shape)}
  _check_names(tensors, shapes, config, folder)
  _check_tied(tensors, config)
  wanted = [None] * len(leaves) if shardings is None else jax.tree.leaves(shardings)
  arrays = []
  for path, leaf, sharding in zip(paths, leaves, wanted, strict=True):
    views = [tensors[name] for name in names[path]]
    part = partial(_gather, views, leaf.shape, _turned(path, leaf.shape), dtype)
    if sharding is None:
      arrays.append(jnp.asarray(part((slice(None),) * len(leaf.shape))))
    else:
      arrays.append(_place(part, leaf.shape, sharding))
  return jax.tree.unflatten(structure, arrays)


def save(
  folder: str | Path,
  config: Qwen3Config,
  params: PyTree,
  dtype: jnp.dtype = jnp.bfloat16,
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes config.json and shards of at most `max_shard_bytes` (or one tensor); the folder appears when all is there.

  Parameters are fetched layer by layer, as `dtype`. With several processes all call this, and the first one writes.

  Raises:
    FileExistsError: `folder` is there already.
    ValueError: a parameter is missing, surplus or misshapen, or `dtype` is none that the format knows.
  """
  folder = Path(folder)
  if folder.exists():
    raise FileExistsError(f"{folder} exists; remove it or choose another folder")
  code = next((code for code, known in DTYPES.items() if known == np.dtype(dtype)), None)
  if code is None:
    raise ValueError(f"dtype {np.dtype(dtype).name} is not supported; use bfloat16, float32 or float16")
  names, paths, leaves = qwen3.parameter_names(config), _paths(params), jax.tree.leaves(params)
  _check_params(dict(zip(paths, leaves)), config)
  parts = [part for path, leaf in zip(paths, leaves) for part in _parts(path, names[path], leaf.shape)]
  files = _plan(parts, np.dtype(dtype).itemsize, max_shard_bytes)
  # A generator expression would hold on to the array before while the next one comes.
  arrays = chain.from_iterable(_fetch(path, leaf, dtype) for path, leaf in zip(paths, leaves))
  if jax.process_index():
    for _ in arrays:
      pass
  else:
    draft = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    draft.mkdir(parents=True)
    try:
      _write(draft, config, files, code, arrays)
      draft.rename(folder)
    finally:
      shutil.rmtree(draft, ignore_errors=True)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f"saved {folder}")


def _abstract(config: Qwen3Config) -> nnx.State:
  return nnx.state(nnx.eval_shape(lambda: qwen3.Qwen3(config, rngs=nnx.Rngs(0))))


def _paths(params: PyTree) -> list[tuple]:
  """The path of each leaf as in `qwen3.parameter_names`: names and list places, without NNX's own wrapping."""
  return [
    tuple(
      getattr(key, "key", getattr(key, "idx", None)) for key in path if not isinstance(key, jax.tree_util.GetAttrKey)
    )
    for path, _ in jax.tree_util.tree_leaves_with_path(params)
  ]


def _turned(path: tuple, shape: tuple[int, ...]) -> bool:
  """Whether Hugging Face keeps this parameter's matrices [out, in], the other way round: all but the embedding."""
  return len(shape) - (path[0] == "runs") >= 2 and path != ("embedding",)


def _parts(path: tuple, names: list[str], shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
  """(name, shape) of each Hugging Face tensor that the parameter is made of."""
  one = shape[-2:] if _turned(path, shape) else shape[path[0] == "runs" :]
  return [(name, one[::-1] if _turned(path, shape) else one) for name in names]


def _open(folder: Path) -> dict[str, np.ndarray]:
  """Every tensor of a checkpoint as a view of its mapped file: nothing is read yet."""
  if (folder / INDEX).is_file():
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    files = sorted(set(index.values()))
  elif (folder / SINGLE).is_file():
    index, files = None, [SINGLE]
  else:
    raise FileNotFoundError(f"{folder} holds neither {INDEX} nor {SINGLE}; give a Hugging Face safetensors folder")
  tensors: dict[str, np.ndarray] = {}
  for file in files:
    if not (folder / file).is_file():
      raise FileNotFoundError(f"{folder / INDEX} names {file}, which is not there; complete the download")
    found = _map(folder / file)
    promised = found if index is None else {name for name, where in index.items() if where == file}
    for name in sorted(promised ^ found.keys()) if index is not None else ():
      raise ValueError(f"{file} and {INDEX} disagree about tensor {name}; copy both from the same checkpoint")
    tensors |= found
  return tensors


def _map(path: Path) -> dict[str, np.ndarray]:
  """Views of the tensors of one file."""
  size = path.stat().st_size
  data = np.memmap(path, np.uint8, mode="r") if size else np.zeros(0, np.uint8)
  length = int.from_bytes(data[:8].tobytes(), "little")
  if size < 8 or 8 + length > size:
    raise ValueError(f"{path} ends within its header; download it again")
  header = json.loads(data[8 : 8 + length].tobytes())
  views = {}
  for name, entry in header.items():
    if name == "__metadata__":
      continue
    if entry["dtype"] not in DTYPES:
      raise ValueError(f"{path}: tensor {name} is {entry['dtype']}; dequantise it to one of {', '.join(DTYPES)} first")
    dtype, (start, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
    if 8 + length + end > size or end - start != dtype.itemsize * int(np.prod(entry["shape"], dtype=np.int64)):
      raise ValueError(f"{path} ends within tensor {name}, or its byte range is wrong; download it again")
    views[name] = np.ndarray(entry["shape"], dtype, data, 8 + length + start)
  return views


def _split_fused(tensors: dict[str, np.ndarray], config: Qwen3Config) -> dict[str, np.ndarray]:
  """Fused expert tensors (gate_up_proj [E 2F D], down_proj [E D F]) as views under the names of single experts."""
  e, d, f = config.num_experts, config.hidden_size, config.moe_intermediate_size
  split: dict[str, np.ndarray] = {}
  for name, view in tensors.items():
    stem, _, last = name.rpartition(".")
    if not stem.endswith("mlp.experts") or last not in ("gate_up_proj", "down_proj"):
      split[name] = view
      continue
    wanted = (e, 2 * f, d) if last == "gate_up_proj" else (e, d, f)
    if view.shape != wanted:
      raise ValueError(f"tensor {name} has shape {view.shape}, the configuration wants {wanted}; check config.json")
    for expert in range(e):
      if last == "down_proj":
        split[f"{stem}.{expert}.down_proj.weight"] = view[expert]
      else:
        split[f"{stem}.{expert}.gate_proj.weight"] = view[expert, :f]
        split[f"{stem}.{expert}.up_proj.weight"] = view[expert, f:]
  return split


def _check_names(
  tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple], config: Qwen3Config, folder: str | Path
) -> None:
  missing = [name for name in shapes if name not in tensors]
  surplus = sorted(tensors.keys() - shapes.keys() - ({"lm_head.weight"} if config.tie_word_embeddings else set()))
  for problem, found in (("lacks", missing), ("has beyond the configuration", surplus)):
    if found:
      rest = f" and {len(found) - 3} more" if len(found) > 3 else ""
      raise ValueError(
        f"{folder} {problem}: {', '.join(found[:3])}{rest}; config.json and weights must belong together"
      )
  for name, shape in shapes.items():
    if tensors[name].shape != shape:
      raise ValueError(
        f"tensor {name} has shape {tensors[name].shape}, the configuration wants {shape}; check config.json"
      )


def _check_tied(tensors: Mapping[str, np.ndarray], config: Qwen3Config) -> None:
  head = tensors.get("lm_head.weight") if config.tie_word_embeddings else None
  if head is not None and not np.array_equal(head, tensors["model.embed_tokens.weight"]):
    raise ValueError(
      "lm_head.weight differs from model.embed_tokens.weight though tie_word_embeddings is true; "
      "set it to false to keep both"
    )


def _gather(
  views: list[np.ndarray], shape: tuple[int, ...], turned: bool, dtype: jnp.dtype, index: tuple[slice, ...]
) -> np.ndarray:
  """The part `index` of the parameter of `shape` that is stacked from `views`."""
  stacked = len(shape) - views[0].ndim
  outer, inner = index[:stacked], index[stacked:]
  places = np.arange(len(views)).reshape(shape[:stacked])[outer]
  sizes = tuple(len(range(*cut.indices(size))) for cut, size in zip(inner, shape[stacked:]))
  result = np.empty((*places.shape, *sizes), dtype)
  for at in np.ndindex(places.shape):
    view = views[places[at]]
    if turned:
      _turn(view[inner[::-1]], result[at])
    else:
      result[at] = view[inner]
  return result


def _turn(matrix: np.ndarray, out: np.ndarray) -> None:
  """out = matrix.T. In strips of 8 rows, which stay in the cache: numpy's own copy takes two to four times as long."""
  if matrix.dtype == out.dtype:
    matrix, out = (x.view(f"u{x.itemsize}") for x in (matrix, out))  # numpy copies bfloat16 one by one
  for row in range(0, len(matrix), 8):
    out[:, row : row + 8] = matrix[row : row + 8].astype(out.dtype, copy=False).T


def _contiguous(x: np.ndarray) -> np.ndarray:
  if x.ndim == 2 and not x.flags.c_contiguous:
    _turn(x.T, out := np.empty(x.shape, x.dtype))
    return out
  return x


def _place(part: Callable[..., np.ndarray], shape: tuple[int, ...], sharding: Sharding) -> jax.Array:
  """As jax.make_array_from_callback, which would have all of this process's parts on the host at once."""
  if sharding.is_fully_replicated:
    return jax.make_array_from_callback(shape, sharding, part)
  places = sharding.addressable_devices_indices_map(shape)
  shards = [jax.block_until_ready(jax.device_put(part(index), device)) for device, index in places.items()]
  return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _check_params(params: Mapping[tuple, Any], config: Qwen3Config) -> None:
  abstract = _abstract(config)
  wanted = dict(zip(_paths(abstract), jax.tree.leaves(abstract)))
  for path in sorted(wanted.keys() ^ params.keys(), key=str):
    problem = "lack" if path in wanted else "have beyond the configuration"
    raise ValueError(f"params {problem} {'.'.join(map(str, path))}; give the state of Qwen3(config)")
  for path, leaf in wanted.items():
    if params[path].shape != leaf.shape:
      raise ValueError(
        f"parameter {'.'.join(map(str, path))} has shape {params[path].shape}, the configuration wants {leaf.shape}"
      )


def _plan(parts: list[tuple[str, tuple[int, ...]]], itemsize: int, limit: int) -> list[dict[str, tuple[int, ...]]]:
  """Tensors of each file, in order, filled up to `limit` bytes."""
  files: list[dict[str, tuple[int, ...]]] = [{}]
  used = 0
  for name, shape in parts:
    size = itemsize * int(np.prod(shape, dtype=np.int64))
    if files[-1] and used + size > limit:
      files.append({})
      used = 0
    files[-1][name] = shape
    used += size
  return files


def _fetch(path: tuple, leaf: Any, dtype: jnp.dtype) -> Iterator[np.ndarray]:
  """The parameter's Hugging Face tensors, one layer on the host at a time."""
  turned = _turned(path, leaf.shape)
  for layer in range(leaf.shape[0]) if path[0] == "runs" else [None]:
    value = _to_host(leaf, layer, dtype)
    for matrix in value if value.ndim == 3 else [value]:
      yield matrix.T if turned else matrix
    del value, matrix  # before the next layer comes


def _to_host(leaf: Any, layer: int | None, dtype: jnp.dtype) -> np.ndarray:
  value = _cast(leaf, layer, dtype)
  return np.asarray(value if value.is_fully_addressable else multihost_utils.process_allgather(value, tiled=True))


@partial(jax.jit, static_argnames="dtype")
def _cast(leaf: jax.Array, layer: int | None, dtype: jnp.dtype) -> jax.Array:
  """A layer, or all. An array of its own, always: one that was fetched keeps its host copy for as long as it lives."""
  return jnp.copy(leaf if layer is None else jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)).astype(dtype)


def _write(
  folder: Path, config: Qwen3Config, files: list[dict[str, tuple[int, ...]]], code: str, arrays: Iterator[np.ndarray]
) -> None:
  index: dict[str, str] = {}
  total = 0
  for number, tensors in enumerate(files, 1):
    name = SINGLE if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor, shape in tensors.items():
      start, end = end, end + DTYPES[code].itemsize * int(np.prod(shape, dtype=np.int64))
      header[tensor] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
      index[tensor] = name
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / name, "wb") as out:
      out.write(len(text).to_bytes(8, "little") + text)
      for _ in tensors:
        array = next(arrays)
        for row in range(0, len(array), BLOCK):
          out.write(_contiguous(array[row : row + BLOCK]).view(np.uint8).data)
        del array  # before the next parameter is fetched
      out.flush()
      os.fsync(out.fileno())
    total += end
  if len(files) > 1:
    listed = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    (folder / INDEX).write_text(listed + "\n", encoding="utf-8")
  raw = to_hf(config) | {"dtype": DTYPES[code].name, "torch_dtype": DTYPES[code].name}
  (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")

"""The whole state of a run, saved atomically and in the background: arrays, and beside them plain JSON.

A checkpoint is a folder `<step>` that appears by one rename when everything in it is written (Orbax). Orbax sees that a
file is missing or cut short, but restores arrays whose bytes have changed without a word. So each leaf's checksum is
kept in the JSON and compared: a damaged checkpoint is an error, never a slightly different model.
"""

import json
import os
import zlib
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jaxtyping import Array, Shaped, UInt32


class DamagedCheckpoint(ValueError):
  """A checkpoint that is there but cannot be read back exactly as it was saved."""


class Checkpoints:
  """The checkpoints of one run: the newest `keep` of them, one folder per step."""

  def __init__(self, folder: str | os.PathLike[str], *, keep: int, allow_previous: bool = False):
    """`allow_previous`: where the newest checkpoint is damaged, restore the one before it instead of failing."""
    if keep < 1:
      raise ValueError(f"{keep=} would delete every checkpoint; keep at least 1 (2 leaves a way back from damage)")
    self.folder = epath.Path(os.fspath(folder)).absolute()
    self._allow_previous = allow_previous
    options = ocp.CheckpointManagerOptions(
      preservation_policy=ocp.checkpoint_managers.LatestN(keep),
      cleanup_tmp_directories=True,
      lightweight_initialize=True,
    )
    self._manager = ocp.CheckpointManager(self.folder, options=options)

  def save(self, step: int, state: Any, host: dict[str, Any]) -> None:
    """Starts to save; the arrays may be donated as soon as this returns. A failure is raised by the next call.

    Args:
      step: larger than every step saved before. The newest may be saved again if its content is the same: that does
        nothing.
      state: a pytree of jax arrays, typed PRNG keys among them.
      host: plain JSON (numpy scalars and tuples become numbers and lists), equal on all hosts.
    """
    self.wait()
    leaves, _ = _named_leaves(state)
    content = {"host": _plain(host, "host"), "leaves": _describe(leaves)}
    seal = _seal(content)
    multihost_utils.assert_equal(np.uint32(seal), f"the hosts differ in the host values of checkpoint {step}")
    latest = self.latest()
    if latest is not None and step <= latest:
      if step == latest and self._read_json(step)["seal"] == seal:
        return
      raise ValueError(f"{step=} cannot follow step {latest} in {self.folder}; go on from that or use another workdir")
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave({name: _stored(leaf) for name, leaf in leaves.items()}),
        json=ocp.args.JsonSave({"content": content, "seal": seal}),
      ),
      force=True,
    )

  def restore(self, abstract_state: Any, step: int | None = None) -> tuple[int, Any, dict[str, Any]]:
    """Reads a checkpoint, the newest by default, and checks that it is what was saved.

    Args:
      abstract_state: what `save` was given, as arrays or as ShapeDtypeStructs; each leaf goes onto its sharding here.

    Returns:
      The step, the state, the host values.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      DamagedCheckpoint: it cannot be read back (and `allow_previous` is off, or no earlier one can be read either).
      ValueError: it is sound, but of a state with other leaves, shapes or types.
    """
    self.wait()
    steps = sorted(self._manager.all_steps(), reverse=True)
    if not steps or (step is not None and step not in steps):
      which = "no checkpoint" if step is None else f"no checkpoint {step}"
      raise FileNotFoundError(f"{which} in {self.folder}; it holds steps {steps[::-1]}")
    wanted = steps if step is None else [step]
    damaged: list[int] = []
    for candidate in wanted:
      try:
        state, host = self._restore(abstract_state, candidate)
      except DamagedCheckpoint as error:
        damaged.append(candidate)
        if candidate == wanted[-1] or not self._allow_previous:
          raise DamagedCheckpoint(f"{error}. {self._remedy(candidate, steps)}") from error
        logging.warning("%s. Taking the one before it.", error)
      else:
        self._set_aside(damaged)
        return candidate, state, host
    raise AssertionError("unreachable")

  def latest(self) -> int | None:
    """The newest complete step on disk, None if there is none."""
    self.wait()
    return self._manager.latest_step()

  def wait(self) -> None:
    """Returns when the save under way is on disk; raises what went wrong with it."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self.wait()
    self._manager.close()

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    self.close()

  def _read_json(self, step: int) -> dict[str, Any]:
    return self._read(step, json=ocp.args.JsonRestore())["json"]

  def _read(self, step: int, **items: ocp.args.CheckpointArgs) -> Any:
    result, damage = None, ""
    try:
      result = self._manager.restore(step, args=ocp.args.Composite(**items))
    except (jax.errors.JaxRuntimeError, MemoryError):
      raise
    except Exception as error:  # Orbax and TensorStore raise a dozen types for files that are not as they were.
      damage = _first_line(error)
    # Each process reads its own part: all have to give up, or take the checkpoint before, together.
    if jax.process_count() > 1 and multihost_utils.process_allgather(np.bool_(damage)).any():
      damage = damage or "another process, which says why, found it damaged"
    if damage:
      raise DamagedCheckpoint(f"checkpoint {step} in {self.folder} cannot be read: {damage}")
    return result

  def _restore(self, abstract_state: Any, step: int) -> tuple[Any, dict[str, Any]]:
    sealed = self._read_json(step)
    if not isinstance(sealed, dict) or _seal(sealed.get("content")) != sealed.get("seal"):
      raise DamagedCheckpoint(f"checkpoint {step} in {self.folder} is damaged: its JSON is not what was saved")
    there = sealed["content"]["leaves"]
    leaves, treedef = _named_leaves(abstract_state)
    differences = _differences({name: leaf[:2] for name, leaf in there.items()}, _shapes(leaves))
    if differences:
      raise ValueError(
        f"checkpoint {step} in {self.folder} is of another state: {differences}. "
        "Use the settings it was saved with, or another workdir"
      )
    targets = {name: _target(leaf) for name, leaf in leaves.items()}
    stored = self._read(step, state=ocp.args.StandardRestore(targets))["state"]
    restored = {name: _loaded(stored[name], leaf) for name, leaf in leaves.items()}
    changed = [name for name, leaf in _describe(restored).items() if leaf != there[name]]
    if changed:
      raise DamagedCheckpoint(
        f"checkpoint {step} in {self.folder} is damaged: {len(changed)} of {len(there)} arrays are not what was saved, "
        f"first {changed[0]}"
      )
    return jax.tree.unflatten(treedef, restored.values()), sealed["content"]["host"]

  def _remedy(self, step: int, steps: list[int]) -> str:
    earlier = [s for s in steps if s < step]
    if not earlier:
      return "There is no earlier one: restore the files from a copy or start again in another workdir"
    return (
      f"The one before it is {earlier[0]}: to go on from there, set checkpoint.allow_previous "
      "(--config.checkpoint.allow_previous=True)"
    )

  def _set_aside(self, steps: list[int]) -> None:
    """Renames damaged checkpoints, so that their steps can be saved again and the files can still be looked at."""
    if not steps:
      return
    if jax.process_index() == 0:
      for step in steps:
        aside = [self.folder / f"{step}.damaged{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 100)))]
        (self.folder / str(step)).rename(next(path for path in aside if not path.exists()))
    multihost_utils.sync_global_devices("damaged checkpoints are set aside")
    self._manager.reload()


def _named_leaves(tree: Any) -> tuple[dict[str, Any], Any]:
  """The leaves by their dotted path, in the tree's order, and the tree's structure."""
  pairs, treedef = jax.tree.flatten_with_path(tree)
  leaves = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in pairs}
  if len(leaves) != len(pairs):
    raise ValueError("two leaves of the state have the same dotted path; rename one of their keys")
  for name, leaf in leaves.items():
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
      raise ValueError(f"state leaf {name} is a {type(leaf).__name__}, not a jax array; put plain values into `host`")
  return leaves, treedef


def _shapes(leaves: dict[str, Any]) -> dict[str, list[Any]]:
  return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in leaves.items()}


def _describe(leaves: dict[str, Any]) -> dict[str, Any]:
  """Shape, dtype and checksum of each leaf, as JSON."""
  shapes = _shapes(leaves)
  sums = jax.device_get({name: _checksum(_stored(leaf)) for name, leaf in leaves.items()})
  return {name: [*shapes[name], int(sums[name])] for name in leaves}


def _differences(there: dict[str, Any], here: dict[str, Any]) -> str:
  """In words, the first three leaves in which two states differ; "" if they do not."""
  found = []
  for name in [*here, *(name for name in there if name not in here)]:
    if there.get(name) != here.get(name):
      either = [f"{tuple(leaf[0])} {leaf[1]}" if leaf else "missing" for leaf in (there.get(name), here.get(name))]
      found.append(f"{name} is {either[0]} in the checkpoint and {either[1]} in this run")
  rest = f"; and {len(found) - 3} more" if len(found) > 3 else ""
  return "; ".join(found[:3]) + rest


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(leaf: jax.Array) -> jax.Array:
  """The array that goes to disk for a leaf: of a typed key, its data."""
  return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _target(leaf: Any) -> jax.ShapeDtypeStruct:
  """What Orbax shall read for a leaf, and where it shall put it."""
  data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
  sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)


def _loaded(stored: jax.Array, leaf: Any) -> jax.Array:
  if not _is_key(leaf):
    return stored
  impl: list[Any] = []
  jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), leaf)  # `leaf` may be a mere ShapeDtypeStruct.
  return jax.random.wrap_key_data(stored, impl=impl[0])


@jax.jit
def _checksum(array: Shaped[Array, "..."]) -> UInt32[Array, ""]:
  """32 bits that change with any one element, computed where the array lies, the same however it is sharded.

  The sum, modulo 2^32, of each element's bits mixed with its index. For a fixed index the mix is a bijection.
  """
  if array.dtype == jnp.bool_:
    array = array.astype(jnp.uint8)
  width = 8 * min(array.dtype.itemsize, 4)
  bits = jax.lax.bitcast_convert_type(array, jnp.dtype(f"uint{width}")).astype(jnp.uint32)
  index = jnp.zeros((), jnp.uint32)
  for axis, size in enumerate(bits.shape):
    index = index * jnp.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
  mixed = bits + index * jnp.uint32(0x9E3779B9)
  mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x7FEB352D)
  mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x846CA68B)
  return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def _seal(content: Any) -> int:
  return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _plain(value: Any, path: str) -> Any:
  """`value` as it will be read back from JSON."""
  if isinstance(value, np.generic):
    value = value.item()
  if value is None or isinstance(value, bool | int | float | str):
    return value
  if isinstance(value, list | tuple):
    return [_plain(item, f"{path}[{n}]") for n, item in enumerate(value)]
  if isinstance(value, dict) and all(isinstance(key, str) for key in value):
    return {key: _plain(item, f"{path}.{key}") for key, item in value.items()}
  raise ValueError(f"{path} is {value!r}; host values are None, bool, int, float, str, lists and dicts with str keys")


def _first_line(error: BaseException) -> str:
  """The innermost cause in one line: the outer ones repeat it amid pages of TensorStore's options."""
  while error.__cause__ is not None:
    error = error.__cause__
  return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"

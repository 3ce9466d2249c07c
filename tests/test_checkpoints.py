import gc
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from qwenlong_jax.checkpoints import Checkpoints, DamagedCheckpoint, _checksum

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

HOST = {"latch": 1, "stage": "rl-1", "data": {"next_index": 40, "parents": [{"next_index": 3}]}, "tau": 0.1 + 0.2}


@pytest.fixture(scope="module", autouse=True)
def abandoned_reads():
  """Reads of damaged files that TensorStore gave up complain when they are collected: here, not after the last test."""
  yield
  gc.collect()


def some_state(seed: int) -> dict[str, Any]:
  """Arrays of several types whose content follows from the seed, an optimizer's state, and a typed key."""
  key = jax.random.key(seed)
  layers = {"wq": jax.random.normal(key, (2, 16, 16), jnp.bfloat16)}
  params = {"embed": jax.random.normal(key, (40, 16)), "layers": layers}
  return {
    "params": params,
    "optimizer": optax.adamw(1e-3).init(params),
    "mask": jax.random.bernoulli(key, 0.5, (7,)),
    "step": jnp.int32(seed),
    "key": jax.random.split(key, 3),
  }


def bits(state: Any) -> list[Any]:
  def raw(leaf: jax.Array) -> tuple[Any, ...]:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return (str(leaf.dtype), raw(jax.random.key_data(leaf)))
    return (str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes())

  return [(jax.tree_util.keystr(path), raw(leaf)) for path, leaf in jax.tree.leaves_with_path(state)]


def save_one(folder: Path, seed: int = 1, step: int = 1) -> None:
  with Checkpoints(folder, keep=2) as checkpoints:
    checkpoints.save(step, some_state(seed), HOST)


def test_what_is_restored_is_what_was_saved_to_the_bit(tmp_path):
  save_one(tmp_path / "c", seed=5, step=12)
  with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
    assert checkpoints.latest() == 12
    step, state, host = checkpoints.restore(jax.eval_shape(lambda: some_state(0)))
  assert (step, host) == (12, HOST)
  assert bits(state) == bits(some_state(5))
  assert jax.tree.structure(state) == jax.tree.structure(some_state(5))
  np.testing.assert_array_equal(jax.random.normal(state["key"][2]), jax.random.normal(some_state(5)["key"][2]))


def test_a_run_without_a_checkpoint_says_so(tmp_path):
  with Checkpoints(tmp_path / "none", keep=2) as checkpoints:
    assert checkpoints.latest() is None
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
      checkpoints.restore(some_state(0))


def test_the_state_may_be_donated_as_soon_as_save_returns(tmp_path):
  overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
  original = {"w": np.arange(1_000_000, dtype=np.float32)}
  state = jax.tree.map(lambda x: jnp.array(x, copy=True), original)
  with Checkpoints(tmp_path / "c", keep=1) as checkpoints:
    checkpoints.save(1, state, {})
    for _ in range(5):
      state = overwrite(state)
    _, restored, _ = checkpoints.restore(state)
  np.testing.assert_array_equal(restored["w"], original["w"])


def test_arrays_come_back_on_the_sharding_asked_for(tmp_path):
  save_one(tmp_path / "c")
  mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
  spec = {2: PartitionSpec("data", "model"), 3: PartitionSpec(None, "data", "model")}

  def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec.get(len(leaf.shape), PartitionSpec()))
    )

  target = jax.tree.map(placed, jax.eval_shape(lambda: some_state(0)))
  with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
    _, state, _ = checkpoints.restore(target)
  assert bits(state) == bits(some_state(1))
  for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(target)):
    assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
  with Checkpoints(tmp_path / "sharded", keep=2) as checkpoints:
    checkpoints.save(1, state, HOST)
    _, again, _ = checkpoints.restore(some_state(0))
  assert bits(again) == bits(some_state(1))


def test_only_the_newest_are_kept(tmp_path):
  with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
    for step in (1, 5, 9):
      checkpoints.save(step, some_state(step), {"step": step})
    checkpoints.wait()
    assert sorted(path.name for path in (tmp_path / "c").iterdir() if path.name.isdigit()) == ["5", "9"]
    step, state, host = checkpoints.restore(some_state(0), step=5)
  assert (step, host) == (5, {"step": 5})
  assert bits(state) == bits(some_state(5))


def test_the_newest_step_may_be_saved_twice_only_with_the_same_content(tmp_path):
  with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
    checkpoints.save(3, some_state(3), HOST)
    checkpoints.save(3, some_state(3), HOST)
    with pytest.raises(ValueError, match="step=3 cannot follow step 3"):
      checkpoints.save(3, some_state(4), HOST)
    with pytest.raises(ValueError, match="step=2 cannot follow step 3"):
      checkpoints.save(2, some_state(3), HOST)


def test_host_values_must_survive_json(tmp_path):
  with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
    with pytest.raises(ValueError, match=r"host.data\[1\].key is \{1, 2\}; host values are"):
      checkpoints.save(1, some_state(1), {"data": [0, {"key": {1, 2}}]})
    with pytest.raises(ValueError, match=r"state leaf lr is a float.*put plain values into `host`"):
      checkpoints.save(1, {"lr": 0.1}, {})
    checkpoints.save(1, some_state(1), {"count": np.int64(3), "pair": (1, 2.5), "text": "é漢"})
    assert checkpoints.restore(some_state(0))[2] == {"count": 3, "pair": [1, 2.5], "text": "é漢"}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda s: s["params"].update(embed=jnp.zeros((41, 16))), r"params.embed is \(40, 16\) float32 .* \(41, 16\)"),
    (lambda s: s.update(step=jnp.float32(0)), r"step is \(\) int32 in the checkpoint and \(\) float32 in this run"),
    (lambda s: s.pop("mask"), r"mask is \(7,\) bool in the checkpoint and missing in this run"),
    (lambda s: s.update(more=jnp.zeros(2)), r"more is missing in the checkpoint and \(2,\) float32 in this run"),
    (lambda s: s.update(key=jax.random.split(jax.random.key(0, impl="rbg"), 3)), r"key is .*fry.* and .*rbg"),
  ],
)
def test_a_state_of_other_leaves_is_refused_by_the_leafs_name(tmp_path, change, message):
  save_one(tmp_path / "c")
  other = some_state(0)
  change(other)
  folder = tmp_path / "c"
  with Checkpoints(folder, keep=2, allow_previous=True) as checkpoints, pytest.raises(ValueError, match=message):
    checkpoints.restore(other)


def flip(path: Path) -> None:
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 0x10
  path.write_bytes(content)


DAMAGE = {
  "flipped": flip,
  "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
  "emptied": lambda path: path.write_bytes(b""),
  "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_an_error_or_makes_no_difference(tmp_path, damage):
  save_one(tmp_path / "sound", seed=7, step=7)
  files = sorted(path.relative_to(tmp_path / "sound") for path in (tmp_path / "sound/7").rglob("*") if path.is_file())
  noticed = []
  for file in files:
    shutil.copytree(tmp_path / "sound", tmp_path / "c")
    DAMAGE[damage](tmp_path / "c" / file)
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
      assert checkpoints.latest() == 7, f"{file} {damage}: the checkpoint has vanished"
      try:
        _, state, host = checkpoints.restore(some_state(0))
      except DamagedCheckpoint as error:
        assert f"checkpoint 7 in {tmp_path / 'c'}" in str(error)
        noticed.append(file)
      else:
        assert (bits(state), host) == (bits(some_state(7)), HOST)
    shutil.rmtree(tmp_path / "c")
  data = max(files, key=lambda file: (tmp_path / "sound" / file).stat().st_size)
  assert data in noticed
  assert Path("7/json/metadata") in noticed


@pytest.mark.parametrize("item", ["state", "json"])
def test_a_missing_item_is_damage(tmp_path, item):
  save_one(tmp_path / "c")
  shutil.rmtree(tmp_path / "c/1" / item)
  with Checkpoints(tmp_path / "c", keep=2) as checkpoints, pytest.raises(DamagedCheckpoint, match="no earlier one"):
    checkpoints.restore(some_state(0))


def test_a_changed_number_in_the_json_is_damage(tmp_path):
  save_one(tmp_path / "c")
  path = tmp_path / "c/1/json/metadata"
  path.write_text(path.read_text().replace('"latch": 1', '"latch": 0'))
  with Checkpoints(tmp_path / "c", keep=2) as checkpoints, pytest.raises(DamagedCheckpoint, match="its JSON is not"):
    checkpoints.restore(some_state(0))


def test_the_previous_checkpoint_is_taken_only_when_asked_for(tmp_path):
  with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
    for step in (4, 8):
      checkpoints.save(step, some_state(step), {"step": step})
  flip(max((tmp_path / "c/8/state/ocdbt.process_0/d").iterdir(), key=lambda path: path.stat().st_size))

  with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
    with pytest.raises(DamagedCheckpoint) as error:
      checkpoints.restore(some_state(0))
    assert "checkpoint 8 in" in str(error.value)
    assert "The one before it is 4" in str(error.value)
    assert "--config.checkpoint.allow_previous=True" in str(error.value)

  with Checkpoints(tmp_path / "c", keep=2, allow_previous=True) as checkpoints:
    step, state, host = checkpoints.restore(some_state(0))
    assert (step, host) == (4, {"step": 4})
    assert bits(state) == bits(some_state(4))
    assert (tmp_path / "c/8.damaged").is_dir()
    assert checkpoints.latest() == 4
    checkpoints.save(8, some_state(8), {"step": 8})
    assert checkpoints.restore(some_state(0))[0] == 8


def test_with_every_checkpoint_damaged_nothing_is_set_aside(tmp_path):
  with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
    for step in (4, 8):
      checkpoints.save(step, some_state(step), {})
  for step in (4, 8):
    (tmp_path / f"c/{step}/json/metadata").write_text("{")
  with Checkpoints(tmp_path / "c", keep=2, allow_previous=True) as checkpoints:
    with pytest.raises(DamagedCheckpoint, match=r"checkpoint 4 .*no earlier one"):
      checkpoints.restore(some_state(0))
    assert checkpoints.latest() == 8


def test_the_checksum_sees_every_element_and_its_place():
  for dtype in (jnp.float32, jnp.bfloat16, jnp.int32, jnp.int8, jnp.bool_):
    array = jnp.zeros((5, 3), dtype)
    sums = {int(_checksum(array))} | {int(_checksum(array.at[i, j].set(dtype(1)))) for i in range(5) for j in range(3)}
    assert len(sums) == 16
  # Two changes of the sign bit alone cancel in a plain weighted sum.
  assert int(_checksum(jnp.array([1.0, 2.0, 3.0, 4.0]))) != int(_checksum(jnp.array([-1.0, 2.0, -3.0, 4.0])))


SAVES_UNTIL_KILLED = """
import os, random, signal, sys, time
import jax, jax.numpy as jnp
from qwenlong_jax.checkpoints import Checkpoints

folder, lives = sys.argv[1], int(sys.argv[2])
chance = random.Random(0)

def state(step):
  return {"w": jnp.arange(20_000.0) * step, "key": jax.random.key(step)}

def save_for_ever():
  with Checkpoints(folder, keep=2) as checkpoints:
    step = 0
    if checkpoints.latest() is not None:
      step, _, _ = checkpoints.restore(state(0))
    while True:
      step += 1
      checkpoints.save(step, state(step), {"step": step})
      print("saving", step, flush=True)
      checkpoints.wait()
      print("saved", step, flush=True)

for life in range(lives):
  read, write = os.pipe()
  child = os.fork()
  if child == 0:
    os.dup2(write, 1)
    save_for_ever()
  os.close(write)
  lines = os.fdopen(read)
  seen = [lines.readline() for _ in range(2 * chance.randrange(3) + 1)]
  time.sleep(chance.uniform(0, 0.15))
  os.kill(child, signal.SIGKILL)
  os.waitpid(child, 0)
  seen += lines.readlines()
  print("killed after", seen[-1].strip(), flush=True)
  sys.stdin.readline()
"""


def test_kill_minus_9_while_saving_leaves_the_checkpoint_before_it_intact(tmp_path):
  lives, interrupted = 8, 0
  command = [sys.executable, "-W", "ignore", "-c", SAVES_UNTIL_KILLED, str(tmp_path / "c"), str(lives)]
  process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  assert process.stdin is not None and process.stdout is not None
  for _ in range(lives):
    words = process.stdout.readline().split()
    assert words[:2] == ["killed", "after"], words
    last = int(words[3])
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
      latest = checkpoints.latest()
      if words[2] == "saving" and latest == last - 1:
        interrupted += 1
      if latest is None:
        assert (words[2], last) == ("saving", 1)
      else:
        assert latest >= (last if words[2] == "saved" else last - 1)
        step, state, host = checkpoints.restore({"w": jnp.zeros(20_000), "key": jax.random.key(0)})
        assert (step, host) == (latest, {"step": latest})
        np.testing.assert_array_equal(state["w"], jnp.arange(20_000.0) * step)
        np.testing.assert_array_equal(jax.random.key_data(state["key"]), jax.random.key_data(jax.random.key(step)))
    process.stdin.write("go on\n")
    process.stdin.flush()
  assert process.wait(timeout=60) == 0
  print(f"{interrupted} of {lives} kills hit a save")


def test_a_grain_iterator_goes_on_where_it_was_saved(tmp_path):
  import grain

  def examples() -> grain.DatasetIterator:
    tasks = [grain.MapDataset.range(n, n + 50).seed(n).shuffle().repeat() for n in (0, 100)]
    return iter(grain.MapDataset.mix(tasks, [0.5, 0.5]).batch(4).to_iter_dataset())

  iterator = examples()
  for _ in range(17):
    next(iterator)
  with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
    checkpoints.save(17, {"w": jnp.zeros(2)}, {"data": iterator.get_state()})
    wanted = [next(iterator).tolist() for _ in range(40)]
    host = checkpoints.restore({"w": jnp.zeros(2)})[2]
  again = examples()
  again.set_state(host["data"])
  assert [next(again).tolist() for _ in range(40)] == wanted

"""Runs an experiment: reads a config and hands it to the stages. The same command again goes on where it stopped.

  python experiments/run.py --config=tiny.py --workdir=DIR
  python experiments/run.py --config=tiny.py --config.optimizer.learning_rate=1e-4
  python experiments/run.py --config=file.py:argument --print_config

A config file is looked for in the current folder, then beside this file. Without --workdir, runs/<config's name>.
What JAX compiles is kept for the next start in --compilation_cache; several hosts need one there that all of them see.

Several hosts: the same command on each of them, with a workdir that all of them see. On a TPU slice nothing else is
needed. Elsewhere each is told where the first can be reached, how many there are and which it is:

  python experiments/run.py --config=FILE --workdir=DIR --coordinator=HOST:PORT --processes=2 --process=0
"""

import difflib
import glob
import json
import os
import re
import sys
import time
import traceback
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

HERE = Path(__file__).resolve().parent
# Say how to come back from damage, where to ask and when to give up, not what is computed: they may change when a run
# goes on.
MAY_DIFFER = {"checkpoint.allow_previous", "optimizer.nonfinite_limit", "llm.timeout", "llm.attempts"} | {
  *("llm.concurrency", "llm.requests_per_minute", "llm.tokens_per_minute", "llm.most_tokens", "llm.most_cost"),
  *(f"llm.{role}{key}" for role in ("", "solver.", "verifier.") for key in ("url", "key_variable")),
  *(f"llm.{role}{key}" for role in ("", "solver.", "verifier.") for key in ("price_in", "price_out")),
}

CONFIG = config_flags.DEFINE_config_file("config", help_string="the experiment: a file with get_config()")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of all that the run writes; by default runs/<config's name>")
COORDINATOR = flags.DEFINE_string("coordinator", "", "with --processes: host:port at which process 0 can be reached")
PROCESSES = flags.DEFINE_integer("processes", 0, "with --coordinator: how many processes there are")
PROCESS = flags.DEFINE_integer("process", 0, "which of them this is, counted from 0")
CACHE = flags.DEFINE_string(
  "compilation_cache",
  "~/.cache/qwenlong_jax/xla",
  "folder or gs://bucket/path in which compiled programs are kept, written by the first process; empty: nowhere. The "
  "environment's JAX_COMPILATION_CACHE_DIR comes first",
)
PRINT_CONFIG = flags.DEFINE_bool("print_config", False, "print the resolved config as JSON and exit")


def main(arguments: list[str]) -> int:
  if len(arguments) > 1:
    return _fail(f"unexpected argument {arguments[1]!r}; settings are given as --config.name=value")
  try:
    resolved = as_json(CONFIG.value)
    if PRINT_CONFIG.value:
      print(json.dumps(resolved, indent=2))
      return 0
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = Path(WORKDIR.value or default_workdir(file)).absolute()
    several = joins()
  except (ValueError, OSError) as error:
    return _fail(str(error))
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)  # Orbax tells its life story at INFO
  keep_compiled(CACHE.value)
  return run_together(workdir, resolved) if several else run(workdir, resolved)


def run_together(workdir: Path, resolved: dict[str, Any]) -> int:
  """`run` as one of several processes: they meet, and none is left waiting for one that has failed."""
  from qwenlong_jax.parallelism import hosts, watch

  watch.begin(workdir / "checkpoints")
  if PROCESSES.value:
    print(f"process {PROCESS.value} of {PROCESSES.value} joins the others at {COORDINATOR.value}", flush=True)
  try:
    hosts.start(COORDINATOR.value, PROCESSES.value, PROCESS.value)
  except (ValueError, RuntimeError) as error:
    alone = "" if PROCESSES.value else "; a machine without others is told so by --processes=1"
    return _fail(f"process {PROCESS.value} cannot join the others: {error}{alone}")
  try:
    status = run(workdir, resolved, together=True)
  except SystemExit as stop:
    status = int(stop.code or 0)
  except Exception as error:
    hosts.await_verdict(error)
    traceback.print_exc()
    status = 1
  hosts.leave(status)


def run(workdir: Path, resolved: dict[str, Any], together: bool = False) -> int:
  """The experiment; its exit status. `together`: with other processes."""
  try:
    number, resumes = settle_together(workdir, resolved) if together else (0, settle(workdir, resolved))
  except (ValueError, OSError) as error:
    return _fail(str(error))
  if number == 0:
    print(f"{'going on in' if resumes else 'starting in'} {workdir}", flush=True)
  log = workdir / (f"error-{number}.log" if number else "error.log")
  log.unlink(missing_ok=True)
  try:
    # Not at the top: importing JAX takes seconds, and a misspelt key shall not wait for it.
    if CONFIG.value.get("documents"):
      try:
        from qwenlong_jax.stages import synthesize
      except ModuleNotFoundError as error:
        if (error.name or "").startswith("qwenlong_jax"):
          raise
        return _fail(f"{error}, which making data takes; pip install -e '.[synthesis]'")
      synthesize.run(CONFIG.value, workdir)
    else:
      from qwenlong_jax.stages import recipe, sweep

      (sweep if CONFIG.value.variants else recipe).run(CONFIG.value, workdir)
  except KeyboardInterrupt:
    print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
    return 130
  except (ValueError, OSError, FloatingPointError) as error:
    log.write_text(traceback.format_exc(), encoding="utf-8")
    return _fail(f"{error} (traceback in {log})")
  except Exception:
    log.write_text(traceback.format_exc(), encoding="utf-8")
    raise
  return 0


def keep_compiled(folder: str) -> None:
  """Tells JAX where its compilation cache is. A folder that cannot be had costs time, not the run."""
  if not folder or "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return
  if "://" not in folder:
    folder = os.path.abspath(os.path.expanduser(folder))
    try:
      os.makedirs(folder, exist_ok=True)
    except OSError as error:
      print(f"compiled programs are not kept: {error}; give another --compilation_cache", file=sys.stderr)
      return
  # By the environment: JAX is imported later. Of a small model most programs compile in less than JAX's one second.
  os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def joins() -> bool:
  """Whether this is one of several processes: the flags say so, or JAX is to find out on a TPU.

  Raises:
    ValueError: flags that contradict each other.
  """
  coordinator, processes, process = COORDINATOR.value, PROCESSES.value, PROCESS.value
  if not coordinator and not processes and not process:
    on_tpu = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return on_tpu and "tpu" in os.environ.get("JAX_PLATFORMS", "tpu") and find_spec("libtpu") is not None
  if processes == 1 and process == 0 and not coordinator:
    return False
  if not re.fullmatch(r".+:\d+", coordinator) or processes < 1:
    raise ValueError(
      f"--coordinator={coordinator} --processes={processes} --process={process}: give the first as HOST:PORT of "
      "process 0, the second as the number of processes, the third as 0 for the first, 1 for the next; or none of them"
    )
  if not 0 <= process < processes:
    raise ValueError(f"--process={process} must be one of 0..{processes - 1}, by --processes={processes}")
  return True


def settle_together(workdir: Path, resolved: dict[str, Any]) -> tuple[int, bool]:
  """`settle` by the first process, after all were seen to be of one mind; which process this is, and what it returns.

  Raises:
    ValueError: the processes have different settings or code, or see different workdirs; and what `settle` raises.
  """
  import jax

  from qwenlong_jax.parallelism import hosts

  files = sorted(glob.glob(f"{Path(hosts.__file__).parents[1]}/**/*.py", recursive=True))
  code = zlib.crc32(b"".join(Path(file).read_bytes() for file in files))
  first, *others = hosts.exchange((flatten(resolved), code, jax.__version__))
  for number, (settings, other_code, version) in enumerate(others, 1):
    if differ := _differ(first[0], settings, "in process 0", f"in process {number}"):
      raise ValueError(f"the processes have different settings: {differ}; start all with the same command")
    if (other_code, version) != first[1:]:
      raise ValueError(
        f"process {number} runs other code (checksum {other_code:08x}, jax {version}) than process 0 "
        f"({first[1]:08x}, jax {first[2]}); install the same on all hosts"
      )
  resumes = hosts.first(lambda: settle(workdir, resolved))
  mark = workdir / ".shared"
  hosts.first(lambda: mark.write_text(f"{os.getpid()} {time.time_ns()}", encoding="utf-8"))
  seen = hosts.exchange(mark.read_text(encoding="utf-8") if mark.exists() else "")
  hosts.first(mark.unlink)
  if len(set(seen)) > 1:
    lost = next(number for number, text in enumerate(seen) if text != seen[0])
    raise ValueError(
      f"process {lost} does not see what process 0 writes in {workdir}; "
      "give --workdir a folder that all hosts share, by its full path"
    )
  return jax.process_index(), resumes


def parse_flags(arguments: list[str]) -> list[str]:
  """absl's parsing, after the config file is found and each --config.key is known to exist."""
  try:
    arguments, file = _with_config_found(arguments)
    _check_overrides(arguments, file)
    return flags.FLAGS(arguments)
  except (flags.Error, ValueError, OSError) as error:
    sys.exit(_fail(str(error)))


def find_config(name: str) -> Path:
  """The config file `name`: in the current folder, else beside run.py."""
  for path in (Path(name), HERE / name):
    if path.is_file():
      return path
  there = sorted(path.name for path in HERE.glob("*.py") if path.name != "run.py")
  close = difflib.get_close_matches(name, there, 1)
  hint = f"did you mean {close[0]}? " if close else ""
  raise FileNotFoundError(
    f"no config file {name} in {Path.cwd()} or {HERE}; {hint}Beside run.py: {', '.join(there) or 'none'}"
  )


def default_workdir(config: str) -> Path:
  file, _, argument = config.partition(":")
  return Path("runs") / re.sub(r"[^\w.=-]+", "-", Path(file).stem + (f"-{argument}" if argument else ""))


def as_json(config: ConfigDict) -> dict[str, Any]:
  """The config as plain JSON values, as it will be read back from config.json."""
  try:
    return json.loads(json.dumps(config.to_dict(), sort_keys=True))
  except TypeError as error:
    raise ValueError(f"a config holds None, bool, int, float, str, lists and dicts only: {error}") from error


def settle(workdir: Path, resolved: dict[str, Any]) -> bool:
  """Makes the workdir this config's own: writes config.json, or compares with the one that is there.

  Returns:
    Whether a run with this config has been here before.

  Raises:
    ValueError: the workdir belongs to other settings.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  path = workdir / "config.json"
  written = [file for file in workdir.iterdir() if not re.fullmatch(r"error(-\d+)?\.log|config\.json", file.name)]
  if path.exists() and written:
    differences = _differences(path, resolved)
    if differences:
      raise ValueError(
        f"{workdir} holds a run of other settings; use another --workdir or the same settings. "
        f"They differ in {differences}"
      )
    return True
  partial = workdir / f"config.json.{os.getpid()}"
  partial.write_text(json.dumps(resolved, indent=2) + "\n", encoding="utf-8")
  partial.replace(path)
  return False


def _differences(path: Path, resolved: dict[str, Any]) -> str:
  try:
    there = flatten(json.loads(path.read_text(encoding="utf-8")))
  except (json.JSONDecodeError, AttributeError) as error:
    raise ValueError(f"{path} is not a saved config ({error}); remove it or use another --workdir") from error
  return _differ(there, flatten(resolved), "there", "now")


def _differ(one: dict[str, Any], other: dict[str, Any], where: str, elsewhere: str) -> str:
  """In words, what differs between two flat configs, and their names."""
  keys = sorted(key for key in {*one, *other} - MAY_DIFFER if _show(one, key) != _show(other, key))
  return "; ".join(f"config.{key} ({_show(one, key)} {where}, {_show(other, key)} {elsewhere})" for key in keys)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested dicts as one, with dotted keys."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
  return flat


def _with_config_found(arguments: list[str]) -> tuple[list[str], str]:
  """The arguments with the config's path resolved (as one --config=path), and that path with its :argument."""
  for n, argument in enumerate(arguments):
    given = re.fullmatch(r"--?config(?:=(.*))?", argument)
    if given:
      separate = given[1] is None
      value = given[1] if not separate else arguments[n + 1] if n + 1 < len(arguments) else ""
      name, colon, extra = (value or "").partition(":")
      if not name:
        break
      file = f"{find_config(name)}{colon}{extra}"
      return [*arguments[:n], f"--config={file}", *arguments[n + 1 + separate :]], file
  if {"--help", "--helpshort", "-help", "-h", "--helpfull"} & set(arguments):
    return arguments, ""
  raise ValueError("no config; say for example --config=tiny.py")


def _check_overrides(arguments: list[str], file: str) -> None:
  """Raises ValueError if a --config.key is not one of the config's, naming the nearest."""
  keys = [found[1] for found in (re.match(r"--?(?:no)?config\.([^=]+)", argument) for argument in arguments) if found]
  if not keys:
    return
  alone = flags.FlagValues()
  holder = config_flags.DEFINE_config_file("config", flag_values=alone, sys_argv=[""])
  alone(["run.py", f"--config={file}"])
  settings = list(flatten(holder.value.to_dict()))
  groups = {".".join(name.split(".")[:n]) for name in settings for n in range(1, name.count(".") + 1)}
  for key in keys:
    if key.split("[")[0] not in {*settings, *groups}:
      same_ending = [name for name in settings if name.split(".")[-1] == key.split(".")[-1]]
      close = difflib.get_close_matches(key, [*settings, *sorted(groups)], 1) or same_ending
      top = dict.fromkeys(name.split(".")[0] for name in settings)
      hint = f"did you mean config.{close[0]}?" if close else f"config has {', '.join(top)}"
      raise ValueError(f"unknown key config.{key}; {hint}")


def _show(flat: dict[str, Any], key: str) -> str:
  return json.dumps(flat[key]) if key in flat else "not set"


def _fail(message: str) -> int:
  print(f"error: {message}", file=sys.stderr, flush=True)
  # What a library's half-read files have to say when the interpreter closes would follow the error and hide it.
  sys.unraisablehook = lambda _: None
  return 1


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)

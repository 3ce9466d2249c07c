"""Makes a process's last words readable: run as a program of its own, it passes on what the process says on stderr.

When a process of a run dies, JAX's runtime ends all others from within, in the midst of whatever they do, with a page
of its own internals. This program, which the process starts beside itself, says instead what happened and what to do.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

FATAL = "Terminating process because the JAX distributed service detected fatal errors"
END = "*** Check failure stack trace"
# What the runtime says before that.
NOISE = re.compile(r"^(E\d{4} .*coordination_service|RPC: /xla|The tasks have crashed|\d+$|$)")


def begin(checkpoints: Path) -> None:
  """From here on this process's stderr goes through a watcher; `checkpoints` is the folder that a run goes on from."""
  # A session of its own: Ctrl-C shall end the process and not what reports its end.
  command = [sys.executable, __file__, str(checkpoints)]
  watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
  assert watcher.stdin is not None
  os.dup2(watcher.stdin.fileno(), sys.stderr.fileno())
  watcher.stdin.close()


def spoken(lines: Iterable[str], checkpoints: Path) -> Iterator[str]:
  """The lines as they are; of the runtime's fatal error, and of where in itself it stood, one line."""
  said, noise = "", []
  for line in lines:
    if said and END in line:
      break
    if said or FATAL in line:
      said += line
    elif NOISE.match(line):
      noise.append(line)
    else:
      yield from [*noise, line]
      noise = []
  if said:
    yield f"error: {gone(said)} {remedy(checkpoints)}\n"
    for _ in lines:  # To its end, so that it can say the rest.
      pass
  else:
    yield from noise


def gone(said: str) -> str:
  """Who is gone, by the runtime's message."""
  if silent := re.search(r"stopped sending heartbeats\):\s*((?:\d+[\s,]+)+)", said):
    names = [f"process {number}" for number in silent[1].replace(",", " ").split()]
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} gone (no heartbeat)."
  if "ALREADY_EXISTS" in said:
    return "another process has the number of this one; each needs a --process of its own."
  if "DEADLINE_EXCEEDED" in said and "RegisterTask" in said:
    return "not all processes came; each needs the same --coordinator and --processes, and all numbers be given once."
  if "Failed to send RPC" in said:
    return "process 0 is gone (the connection to it is lost)."
  return f"another process is gone: {' '.join(said.partition('absl::Status: ')[2].split()) or said.strip()}."


def remedy(checkpoints: Path) -> str:
  """What to do now."""
  steps = [int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()]
  where = f"from step {max(steps)}" if steps else f"from the last checkpoint, if there is one in {checkpoints}"
  return f"Start all processes again with the same command: they go on {where}"


if __name__ == "__main__":
  for line in spoken(sys.stdin, Path(sys.argv[1])):
    print(line, end="", file=sys.stderr, flush=True)

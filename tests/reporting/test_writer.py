import json
import math
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from qwenlong_jax.reporting import Reporter, StepMetrics, read_rows
from qwenlong_jax.reporting.writer import duration, progress_line


def metrics(step: int, **changes) -> StepMetrics:
  values = dict(
    reward=0.1 * step, reward_by_task={"multi_hop": 0.5, "multiple_choice": 0.25}, entropy=0.2, latch=0, compilations=1
  )
  return StepMetrics("rl1", step, **(values | changes))


def run(folder, steps, resume_at=None) -> None:
  with Reporter(folder, resume_at) as reporter:
    for step in steps:
      reporter.write(metrics(step), seconds=0.5, tokens=100, total_steps=10)


def strict(text: str) -> dict:
  def refuse(constant: str):
    raise AssertionError(f"{constant} is not JSON")

  return json.loads(text, parse_constant=refuse)


def test_numbers_that_json_cannot_hold_become_null_and_are_named(tmp_path):
  with Reporter(tmp_path) as reporter:
    bad = metrics(0, entropy=math.nan, loss=-math.inf, reward_by_task={"multi_hop": np.float32("nan")})
    reporter.write(bad, seconds=1.0)
  row = strict((tmp_path / "metrics.jsonl").read_text())
  assert row["entropy"] is None and row["loss"] is None and row["reward_by_task"] == {"multi_hop": None}
  assert set(row["nonfinite_fields"]) == {"entropy", "loss", "reward_by_task.multi_hop"}


def test_scalars_of_numpy_and_jax_are_written_as_plain_numbers():
  row = metrics(
    3, loss=np.float32(0.5), latch=jnp.int32(1), reward=jnp.float32(0.25), failures={"empty": np.int64(2)}
  ).row()
  assert (row["loss"], row["latch"], row["reward"], row["failures"]) == (0.5, 1, 0.25, {"empty": 2})
  assert type(row["latch"]) is int and type(row["loss"]) is float
  json.dumps(row, allow_nan=False)


def test_what_the_clock_decides_stays_out_of_metrics(tmp_path):
  run(tmp_path, range(2))
  assert "compilations" not in read_rows(tmp_path / "metrics.jsonl")[0]
  timing = read_rows(tmp_path / "timing.jsonl")[1]
  assert timing == {"stage": "rl1", "step": 1, "seconds": 0.5, "tokens_per_second": 200.0, "compilations": 1}


@pytest.mark.parametrize("cursor", [0, 1, 3, 5])
def test_a_resumed_run_leaves_the_bytes_of_an_uninterrupted_one(tmp_path, cursor):
  run(tmp_path / "whole", range(7))
  run(tmp_path / "cut", range(5))
  with open(tmp_path / "cut" / "metrics.jsonl", "ab") as file:
    file.write(b'{"stage": "rl1", "st')
  run(tmp_path / "cut", range(cursor, 7), resume_at=cursor)
  for name in ("metrics.jsonl", "timing.jsonl"):
    assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_rows_is_the_cursor_to_resume_at(tmp_path):
  with Reporter(tmp_path) as reporter:
    assert reporter.rows == 0
    reporter.write(metrics(0), seconds=1.0)
    reporter.write(metrics(4), seconds=1.0)
    cursor = reporter.rows
  with Reporter(tmp_path, resume_at=cursor) as reporter:
    assert reporter.rows == 2
    with pytest.raises(ValueError, match="step 4 after step 4"):
      reporter.write(metrics(4), seconds=1.0)


def test_fewer_rows_than_the_checkpoint_saw_is_an_error(tmp_path):
  run(tmp_path, range(3))
  before = (tmp_path / "metrics.jsonl").read_bytes()
  with pytest.raises(ValueError, match="holds 3 valid rows, but the checkpoint was saved after 4"):
    Reporter(tmp_path, resume_at=4)
  assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_new_run_does_not_write_over_an_old_one(tmp_path):
  run(tmp_path, range(3))
  with pytest.raises(ValueError, match="already holds 3 rows"):
    Reporter(tmp_path)


def test_tensorboard_forgets_the_steps_after_the_checkpoint(tmp_path):
  from tensorboardX.proto.event_pb2 import Event, SessionLog

  def events(path):
    data, at = path.read_bytes(), 0
    while at < len(data):
      size = int.from_bytes(data[at : at + 8], "little")
      yield Event.FromString(data[at + 12 : at + 12 + size])
      at += size + 16

  run(tmp_path, range(5))
  run(tmp_path, range(2, 4), resume_at=2)
  found = [e for path in sorted((tmp_path / "tensorboard").iterdir()) for e in events(path)]
  starts = [e.step for e in found if e.session_log.status == SessionLog.START]
  assert 2 in starts
  rewards = [(e.step, round(v.simple_value, 6)) for e in found for v in e.summary.value if v.tag == "rl1/reward"]
  assert sorted(rewards) == sorted([(s, round(0.1 * s, 6)) for s in (0, 1, 2, 3, 4, 2, 3)])


def test_the_console_line_says_what_matters():
  row = metrics(41, band_low=0.1, band_high=0.3, response_length=812.4, loss=math.nan, skipped="nonfinite").row()
  line = progress_line(row, seconds=9.8, rate=3120.0, total_steps=200, left=1500.0)
  for words in (
    "rl1",
    "41/200",
    "mh 0.50",
    "H 0.200 in [0.100 0.300]",
    "latch 0",
    "812",
    "3,120 tok/s",
    "left 25m 00s",
  ):
    assert words in line
  assert "SKIPPED: nonfinite" in line and "loss not finite" in line


def test_durations_read_like_a_clock():
  assert [duration(s) for s in (0, 59.4, 60, 3599, 3600, 12000, 187200)] == [
    "0s",
    "59s",
    "1m 00s",
    "59m 59s",
    "1h 00m",
    "3h 20m",
    "2d 04h",
  ]


def test_importing_the_package_draws_in_neither_matplotlib_nor_tensorboard():
  code = "import sys, qwenlong_jax.reporting; print({'matplotlib', 'tensorboardX', 'jinja2'} & set(sys.modules))"
  assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"

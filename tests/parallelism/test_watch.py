"""What is left of the runtime's last words; the texts are jax 0.10.2's."""

from pathlib import Path

import pytest

from qwenlong_jax.parallelism import watch

SILENT = """\
E1124 15:15:32.540461   18638 coordination_service.cc:1549] [118] Use error polling to propagate the following error \
to all tasks: UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
1
3
The tasks have crashed. Check the task logs for an earlier error to debug further. [type.googleapis.com/tensorflow]
E1124 15:15:32.541158   18649 coordination_service_agent.cc:289] Polled an error from coordination service.
F1124 15:15:32.541501   18649 client.h:80] Terminating process because the JAX distributed service detected fatal \
errors. This most likely indicates that another task died. absl::Status: UNAVAILABLE: The following tasks are \
unhealthy (stopped sending heartbeats):
1
3
The tasks have crashed. Check the task logs for an earlier error to debug further.

RPC: /xla.coordination.CoordinationService/PollForError [type.googleapis.com/tensorflow]
*** Check failure stack trace: ***
    @     0x7f051ff40634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
Fatal Python error: Aborted
"""
LOST = """\
F1124 15:15:57.431457   19468 client.h:80] Terminating process because the JAX distributed service detected fatal \
errors. absl::Status: UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was preempted.
:UNKNOWN:Error received from peer  {grpc_status:14, grpc_message:"Socket closed"}
*** Check failure stack trace: ***
    @     0x7f30f9540634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""
TWICE = """\
F1124 client.h:80] Terminating process because the JAX distributed service detected fatal errors. absl::Status: \
ALREADY_EXISTS: Aborted connect attempt as there is a request from a newer incarnation.
"""
FEW = """\
F1124 client.h:80] Terminating process because the JAX distributed service detected fatal errors. absl::Status: \
DEADLINE_EXCEEDED: Deadline Exceeded
RPC: /xla.coordination.CoordinationService/RegisterTask
"""
OTHER = "F1124 client.h:80] Terminating process because the JAX distributed service detected fatal errors. " + (
  "absl::Status: INTERNAL: what nobody has seen yet\n"
)


@pytest.mark.parametrize(
  ("text", "said"),
  [
    (SILENT, "process 1 and process 3 are gone (no heartbeat)."),
    (LOST, "process 0 is gone (the connection to it is lost)."),
    (TWICE, "another process has the number of this one; each needs a --process of its own."),
    (FEW, "not all processes came; each needs the same --coordinator and --processes, and all numbers be given once."),
    (OTHER, "another process is gone: INTERNAL: what nobody has seen yet."),
  ],
)
def test_who_is_gone_and_from_where_to_go_on_is_one_line(tmp_path, text, said):
  for step in ("4", "12", "16.orbax-checkpoint-tmp"):
    (tmp_path / step).mkdir()
  lines = iter(["a warning\n", *text.splitlines(keepends=True)])
  assert list(watch.spoken(lines, tmp_path)) == [
    "a warning\n",
    f"error: {said} Start all processes again with the same command: they go on from step 12\n",
  ]


def test_without_a_checkpoint_none_is_promised(tmp_path):
  (line,) = watch.spoken(iter(LOST.splitlines(keepends=True)), tmp_path / "none")
  assert line.endswith(f"they go on from the last checkpoint, if there is one in {tmp_path / 'none'}\n")


def test_everything_else_passes_as_it_is():
  text = "Traceback (most recent call last):\n\n  line\nE0000 coordination_service: a hiccup\n12\nerror: this\n\n7\n"
  assert "".join(watch.spoken(iter(text.splitlines(keepends=True)), Path("none"))) == text

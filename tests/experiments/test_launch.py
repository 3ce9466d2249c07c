"""What the launch scripts would say to gcloud and XPK. Neither is here, nor a TPU: that they obey is not tested."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "experiments/launch"
SETTINGS = {
  "NAME": "run1",
  "ZONE": "us-east5-a",
  "TYPE": "v5p-64",
  "RUNTIME": "v2-alpha-tpuv5",
  "SHARE": "gs://bucket",
  "CLUSTER": "mine",
  "PROJECT": "ours",
  "IMAGE": "registry/image",
}
SSH = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "run1"]


def said(script, *arguments, **settings):
  """The commands that a dry run prints, each split into its words."""
  environment = {**os.environ, **SETTINGS, **settings}
  command = ["bash", str(FOLDER / script), "--dry-run", *arguments]
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("script", sorted(FOLDER.glob("*.sh")), ids=lambda path: path.name)
def test_a_script_is_bash(script):
  subprocess.run(["bash", "-n", str(script)], check=True)
  assert os.access(script, os.X_OK)


def test_a_slice_is_queued_for_with_the_flags_given():
  ((*words, spot, zone),) = said("tpu_vm.sh", "create", "--spot")
  assert words[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "run1"]
  assert set(words[6:]) == {"--node-id=run1", "--accelerator-type=v5p-64", "--runtime-version=v2-alpha-tpuv5"}
  assert (spot, zone) == ("--spot", "--zone=us-east5-a")


def test_every_host_gets_the_code_and_the_share():
  archive, copy, install = said("tpu_vm.sh", "install")
  assert archive[:2] == ["git", "archive"] and "--worker=all" in copy and "run1:" in copy
  assert install[:7] == [*SSH, "--worker=all"]
  assert install[7].endswith("bash code/experiments/launch/on_host.sh gs://bucket /mnt/qwenlong")


def test_every_host_starts_the_same_command_and_the_shell_there_reads_the_settings_as_given_here():
  (words,) = said("tpu_vm.sh", "start", "--config=tiny.py", "--config.title=two words")
  assert words[:7] == [*SSH, "--worker=all"]
  there = shlex.split(words[7].removeprefix("--command="))
  begin = there.index("experiments/run.py")
  assert there[begin + 1 : begin + 5] == [
    "--workdir=/mnt/qwenlong/run1",
    "--compilation_cache=/mnt/qwenlong/xla",
    "--config=tiny.py",
    "--config.title=two words",
  ]


def test_the_first_host_is_listened_to_and_told_to_stop():
  (log,), (stop,) = said("tpu_vm.sh", "log"), said("tpu_vm.sh", "stop")
  assert "--worker=0" in log and any("tail" in word for word in log)
  assert "--worker=0" in stop and any("kill -TERM" in word for word in stop)


def test_a_workload_on_gke_has_the_share_and_comes_back():
  (words,) = said("gke.sh", "start", "--config=tiny.py")
  assert words[:3] == ["xpk", "workload", "create"]
  assert {"--workload=run1", "--tpu-type=v5p-64", "--storage=qwenlong", "--docker-image=registry/image"} <= set(words)
  assert {"--cluster=mine", "--zone=us-east5-a", "--project=ours"} <= set(words)
  assert any(word.startswith("--max-restarts=") for word in words)
  (command,) = [word for word in words if word.startswith("--command=")]
  assert "run.py --workdir=/mnt/qwenlong/run1 --compilation_cache=/mnt/qwenlong/xla --config=tiny.py" in command


@pytest.mark.parametrize(
  "script, verbs", [("tpu_vm.sh", "state delete"), ("gke.sh", "cluster storage image log delete")]
)
def test_the_other_verbs_print_and_do_nothing(script, verbs):
  for verb in verbs.split():
    assert said(script, verb)[0][0] in ("gcloud", "xpk", "bash", "kubectl")


@pytest.mark.parametrize("script", ["tpu_vm.sh", "gke.sh"])
def test_what_is_missing_or_unknown_is_named(script):
  command = ["bash", str(FOLDER / script), "--dry-run"]
  wrong = subprocess.run([*command, "fly"], env=os.environ | SETTINGS, capture_output=True, text=True)
  assert wrong.returncode == 2 and wrong.stderr == "unknown: fly\n"
  bare = {name: value for name, value in os.environ.items() if name not in SETTINGS}
  unset = subprocess.run([*command, "delete"], env=bare, capture_output=True, text=True)
  assert unset.returncode and "NAME: parameter null or not set" in unset.stderr

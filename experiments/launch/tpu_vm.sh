#!/usr/bin/env bash
# An experiment on a TPU slice of one host or many: gcloud says the same to all of them. See README.md here.
#
#   export NAME=run1 ZONE=us-east5-a TYPE=v5p-64 RUNTIME=v2-alpha-tpuv5 SHARE=10.0.0.2:/share
#   tpu_vm.sh [--dry-run] create [--spot] | state | install | start --config=FILE ... | log | stop | delete
set -euo pipefail
cd "$(dirname "$0")/../.."

run() { if [[ $dry ]]; then printf '%q ' "$@" && echo; else "$@"; fi; }
tpu() { run gcloud compute tpus "$@" --zone="$ZONE"; }
on() { tpu tpu-vm ssh "$NAME" --worker="$1" --command="$2"; }

dry=
if [[ ${1-} == --dry-run ]]; then dry=1 && shift; fi
: "${NAME:?}" "${ZONE:?}"
verb=${1:?what to do: create, state, install, start, log, stop or delete} && shift
folder=/mnt/qwenlong

case $verb in
  create)
    tpu queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="${TYPE:?}" \
      --runtime-version="${RUNTIME:?}" "$@"
    ;;
  state) tpu queued-resources describe "$NAME" --format='value(state.state)' ;;
  install)
    run git archive --format=tar.gz --output=/tmp/qwenlong_jax.tar.gz HEAD
    tpu tpu-vm scp /tmp/qwenlong_jax.tar.gz "$NAME:" --worker=all
    on all "mkdir -p code && tar -xzf qwenlong_jax.tar.gz -C code && \
bash code/experiments/launch/on_host.sh ${SHARE:?} $folder"
    ;;
  start)
    # In a session of its own, so that it outlives the connection.
    on all "cd code; setsid nohup ~/venv/bin/python experiments/run.py --workdir=$folder/$NAME \
--compilation_cache=$folder/xla $(printf '%q ' "$@")>~/run.log 2>&1 </dev/null & echo \$! >~/run.pid"
    ;;
  log) on 0 "tail -n 100 -f run.log" ;;
  stop) on 0 "kill -TERM \$(cat run.pid)" ;;
  delete) tpu queued-resources delete "$NAME" --force --quiet ;;
  *) echo "unknown: $verb" >&2 && exit 2 ;;
esac

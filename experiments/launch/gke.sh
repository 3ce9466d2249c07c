#!/usr/bin/env bash
# An experiment on a GKE cluster, by XPK (pip install xpk). See README.md here.
#
#   export NAME=run1 CLUSTER=mine ZONE=us-east5-a PROJECT=mine TYPE=v5p-64 IMAGE=us-docker.pkg.dev/mine/images/qwenlong
#   gke.sh [--dry-run] cluster [--spot] | storage | image | start --config=FILE ... | log | delete
set -euo pipefail
cd "$(dirname "$0")/../.."

run() { if [[ $dry ]]; then printf '%q ' "$@" && echo; else "$@"; fi; }
pack() { run xpk "$@" --cluster="${CLUSTER:?}" --zone="${ZONE:?}" --project="${PROJECT:?}"; }

dry=
if [[ ${1-} == --dry-run ]]; then dry=1 && shift; fi
verb=${1:?what to do: cluster, storage, image, start, log or delete} && shift
folder=/mnt/qwenlong
experiment="exec python experiments/run.py --workdir=$folder/${NAME-} --compilation_cache=$folder/xla"

case $verb in
  cluster) pack cluster create --tpu-type="${TYPE:?}" --num-slices=1 "$@" ;;
  storage)
    pack storage create qwenlong --type=gcpfilestore --auto-mount=false --mount-point=$folder --readonly=false \
      --size=1024 --tier=BASIC_SSD --access_mode=ReadWriteMany --vol=default
    ;;
  image)
    run bash -c "git archive HEAD | docker build --file experiments/launch/Dockerfile --tag ${IMAGE:?} -"
    run docker push "$IMAGE"
    ;;
  start)
    # A pod that is told to go has so many seconds to finish its step and save.
    pack workload create --workload="${NAME:?}" --tpu-type="${TYPE:?}" --num-slices=1 --docker-image="${IMAGE:?}" \
      --storage=qwenlong --max-restarts=50 --termination-grace-period-seconds=900 \
      --command="$experiment $(printf '%q ' "$@")"
    ;;
  log)
    run kubectl logs --follow --tail=100 \
      --selector="jobset.sigs.k8s.io/jobset-name=${NAME:?},batch.kubernetes.io/job-completion-index=0"
    ;;
  delete) pack workload delete --workload="${NAME:?}" ;;
  *) echo "unknown: $verb" >&2 && exit 2 ;;
esac

#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster, by xpk (https://github.com/AI-Hypercomputer/xpk).
#
#   CLUSTER=my-cluster TPU_TYPE=v5litepod-16 SLICES=2 IMAGE=REGISTRY/uvit_jax \
#     tools/launch/gke.sh my-run --config=configs/uvit_l.py --config.mesh.data=2 --workdir=/data/run
#
# CLUSTER: created by `xpk cluster create`. TPU_TYPE: of a slice. SLICES: their number (default 1);
# only config.mesh.data crosses them. IMAGE: has the code in its working directory. RESTARTS: the
# number of times that a run resumes from its newest checkpoint after losing a worker (default 10).
set -euo pipefail
: "${CLUSTER:?set CLUSTER}" "${TPU_TYPE:?set TPU_TYPE, such as v5litepod-16}" "${IMAGE:?set IMAGE}"
name=${1:?give the run a name}
shift

printf -v arguments ' %q' "$@"
exec xpk workload create --cluster="$CLUSTER" --workload="$name" --tpu-type="$TPU_TYPE" \
  --num-slices="${SLICES:-1}" --docker-image="$IMAGE" --max-restarts="${RESTARTS:-10}" \
  --command="python3 -m experiments.train --distributed=auto$arguments"

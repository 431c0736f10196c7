#!/usr/bin/env bash
# Trains on all workers of a TPU VM slice, on which the code and its environment are installed.
#
#   TPU=my-pod ZONE=us-east5-b tools/launch/tpu_vm.sh --config=configs/uvit_l.py --workdir=/data/uvit_l
#
# TPU, ZONE: the slice and its zone. DIRECTORY: of the checkout on every worker (default ~/uvit_jax).
# Rerun it after losing a worker: it resumes from the newest checkpoint.
set -euo pipefail
: "${TPU:?set TPU to the name of the slice}" "${ZONE:?set ZONE to its zone}"

# Arguments are quoted again for the workers' shell.
printf -v arguments ' %q' "$@"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
  --command="cd ${DIRECTORY:-~/uvit_jax} && python3 -m experiments.train --distributed=auto$arguments"

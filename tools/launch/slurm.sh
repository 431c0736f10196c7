#!/usr/bin/env bash
# Trains on the nodes of a SLURM cluster, with one process per GPU.
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 \
#     tools/launch/slurm.sh --config=configs/uvit_l.py --workdir=/data/uvit_l
#
# Submit it from the checkout, on a file system that all nodes share, in the run's environment. When
# a process is lost, the others end, and the job is requeued and resumes from the newest checkpoint,
# at most RESTARTS times (default 10). A mistake in the command line (status 2) is not retried.
#SBATCH --job-name=uvit_jax
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

status=0
srun --kill-on-bad-exit=1 python3 -m experiments.train --distributed=auto "$@" || status=$?
if (( status != 0 && status != 2 && status != 143 && ${SLURM_RESTART_COUNT:-0} < ${RESTARTS:-10} )); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"

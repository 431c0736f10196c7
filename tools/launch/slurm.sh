#!/usr/bin/env bash
# One run on the nodes of a SLURM cluster, a process for each GPU.
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 \
#     tools/launch/slurm.sh --config=configs/uvit_l.py --workdir=/data/uvit_l
#
# Submitted from the checkout, on a file system that all nodes see, in the run's environment. When a
# process is lost, the others end, and the job is queued again and goes on from the newest
# checkpoint, RESTARTS times at most (default 10); a mistake in the command line (status 2) is not
# tried again.
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

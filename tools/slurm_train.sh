#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Train in a slurm job.
#
# Usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]
#
#   PARTITION   slurm partition
#   JOB_NAME    name of the job
#   CONFIG      config file
#   WORK_DIR    folder for logs and checkpoints
#
# Variables (defaults): GPUS (8), number of processes; GPUS_PER_NODE (GPUS, at most 8); CPUS_PER_TASK (5); SRUN_ARGS
# (none), further arguments of srun, e.g. --gres=none on machines without GPUs; PORT (29500); PYTHON (python).
set -euo pipefail
tools=$(dirname "${BASH_SOURCE[0]}")
. "$tools/dist_run.sh"

require_arguments 4 "$@"
slurm_run "$1" "$2" "$tools/train.py" "$3" --work-dir "$4" "${@:5}"

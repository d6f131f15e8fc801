#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Evaluate a checkpoint in a slurm job.
#
# Usage: tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]
#
#   PARTITION   slurm partition
#   JOB_NAME    name of the job
#   CONFIG      config file
#   CHECKPOINT  checkpoint file
#
# Variables (defaults): GPUS (8), number of processes; GPUS_PER_NODE (GPUS, at most 8); CPUS_PER_TASK (5); SRUN_ARGS
# (none), further arguments of srun, e.g. --gres=none on machines without GPUs; PORT (29500); PYTHON (python).
set -euo pipefail
tools=$(dirname "${BASH_SOURCE[0]}")
. "$tools/dist_run.sh"

require_arguments 4 "$@"
slurm_run "$1" "$2" "$tools/test.py" "$3" "$4" "${@:5}"

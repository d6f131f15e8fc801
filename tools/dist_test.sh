#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Evaluate a checkpoint in several processes on this machine; without a GPU they communicate over gloo.
#
# Usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
#
#   CONFIG       config file
#   CHECKPOINT   checkpoint file
#   GPUS         number of processes on this machine, from 1; one for each GPU
#
# Variables (defaults): NNODES (1), number of machines, with the script started on each; NODE_RANK (0), number of this
# machine; MASTER_ADDR (127.0.0.1) and PORT (29500) of machine 0; PYTHON (python).
set -euo pipefail
tools=$(dirname "${BASH_SOURCE[0]}")
. "$tools/dist_run.sh"

require_arguments 3 "$@"
dist_run "$3" "$tools/test.py" "$1" "$2" "${@:4}"

# SPDX-License-Identifier: Apache-2.0
# Functions of the scripts that start several processes; they source this file.

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

usage() { sed -n '/^# Usage/,/^[^#]/s/^# \{0,1\}//p' "$0"; }

# require_arguments COUNT ARGUMENT...: print the usage on --help, or if arguments are missing
require_arguments() {
  local count=$1
  shift
  case " $* " in *' --help '* | *' -h '*) usage; exit ;; esac
  [ $# -ge "$count" ] && return
  usage >&2
  fail "$(basename "$0") takes $count arguments before its options; $# given. See the usage above."
}

# require_number NAME VALUE LEAST
require_number() {
  case $2 in '' | *[!0-9]* | 0?*) fail "$1 is '$2': expected a number >= $3, as digits." ;; esac
  [ "$2" -ge "$3" ] || fail "$1 is $2: expected a number >= $3."
}

# dist_run GPUS TOOL ARGUMENT...: run a tool in GPUS processes on this machine, one of NNODES
dist_run() {
  local processes=$1 python=${PYTHON:-python} nodes=${NNODES:-1} node=${NODE_RANK:-0} port=${PORT:-29500} gpus
  shift
  require_number GPUS "$processes" 1
  require_number NNODES "$nodes" 1
  require_number NODE_RANK "$node" 0
  require_number PORT "$port" 1
  [ "$node" -lt "$nodes" ] \
    || fail "NODE_RANK is $node; with NNODES=$nodes it ranges from 0 to $((nodes - 1)). Change one of them."
  gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())') \
    || fail "'$python' cannot import torch. Activate the environment that has it, or set its Python:" \
      "PYTHON=/path/to/python"
  [ "$gpus" -eq 0 ] || [ "$processes" -le "$gpus" ] \
    || fail "GPUS is $processes and this machine has $gpus: expected 1 to $gpus. Lower it, or run on CPUs:" \
      "CUDA_VISIBLE_DEVICES="
  exec "$python" -m torch.distributed.run --nnodes "$nodes" --node-rank "$node" --nproc-per-node "$processes" \
    --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "$port" "$@" --launcher pytorch
}

# slurm_run PARTITION JOB_NAME TOOL ARGUMENT...: run a tool in GPUS tasks of a slurm job
slurm_run() {
  local partition=$1 job=$2 tasks=${GPUS:-8} node_tasks cpus=${CPUS_PER_TASK:-5}
  shift 2
  require_number GPUS "$tasks" 1
  node_tasks=${GPUS_PER_NODE:-$((tasks < 8 ? tasks : 8))}
  require_number GPUS_PER_NODE "$node_tasks" 1
  require_number CPUS_PER_TASK "$cpus" 1
  command -v srun >/dev/null \
    || fail "srun not found. Run this on a slurm cluster, or use $(basename "$0" | sed s/slurm/dist/) on this machine."
  if [ -n "${PORT:-}" ]; then
    require_number PORT "$PORT" 1
    export MASTER_PORT=$PORT
  fi
  # Unquoted, for several arguments; last, so that they can override what comes before.
  # shellcheck disable=SC2086
  exec srun --partition="$partition" --job-name="$job" --gres=gpu:"$node_tasks" --ntasks="$tasks" \
    --ntasks-per-node="$node_tasks" --cpus-per-task="$cpus" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$@" --launcher slurm
}

# SPDX-License-Identifier: Apache-2.0
"""Set up distributed runs: on GPUs through MMEngine, on CPUs with gloo."""

import atexit
import gc
import os
import subprocess
from datetime import timedelta

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.logging import print_log
from torch.distributed import destroy_process_group, init_process_group

from mmrepmlp.errors import MMRepMLPError

# Environment variables in which each launcher passes rank and world size.
VARIABLES = {
    "pytorch": dict(RANK="RANK", WORLD_SIZE="WORLD_SIZE", LOCAL_RANK="LOCAL_RANK"),
    "slurm": dict(RANK="SLURM_PROCID", WORLD_SIZE="SLURM_NTASKS", LOCAL_RANK="SLURM_LOCALID"),
    "mpi": dict(
        RANK="OMPI_COMM_WORLD_RANK", WORLD_SIZE="OMPI_COMM_WORLD_SIZE", LOCAL_RANK="OMPI_COMM_WORLD_LOCAL_RANK"
    ),
}
STARTERS = dict(pytorch="tools/dist_train.sh or torchrun", slurm="tools/slurm_train.sh or srun", mpi="mpirun")
CPU_WRAPPER = "mmrepmlp.CPUDistributedDataParallel"


def setup_distributed(cfg: Config) -> None:
    """Prepare a config and this process for MMEngine's runner, with or without GPUs.

    With GPUs, MMEngine does the setup. Without, the process group is initialized here, with gloo, and the config gets
    a model wrapper that works on CPUs.

    Raises:
        MMRepMLPError: An environment variable of the launcher is not set, or the address of process 0 is unknown.
        ValueError: The machine has fewer GPUs than processes.
    """
    if cfg.launcher == "none":
        return
    export_ranks(cfg.launcher)
    if torch.cuda.is_available():
        check_gpu(int(os.environ["LOCAL_RANK"]), torch.cuda.device_count())
    if get_device() == "cpu":
        init_gloo(**(cfg.get("env_cfg", {}).get("dist_cfg") or {}))
        choose_cpu_wrapper(cfg)
        print_log("No GPU available: processes communicate over gloo, with a model wrapper for CPUs.", "current")


def export_ranks(launcher: str) -> None:
    """Set torch's environment variables for rank and world size from those of the launcher."""
    for name, source in VARIABLES[launcher].items():
        if source not in os.environ:
            raise MMRepMLPError(
                f"--launcher {launcher} reads the environment variable {source}, which is not set. Start the processes "
                f"with {STARTERS[launcher]}, or this one alone with --launcher none."
            )
        os.environ[name] = os.environ[source]


def check_gpu(local_rank: int, gpus: int) -> None:
    """Reject more processes than the machine has GPUs."""
    if local_rank >= gpus:
        raise ValueError(
            f"process {local_rank} on this machine, counted from 0, has no GPU: {gpus} are visible. Start at most "
            f"{gpus} per machine, or set CUDA_VISIBLE_DEVICES= to run on CPUs."
        )


def init_gloo(timeout: float | None = None, port: int | None = None, **unused) -> None:
    """Initialize the default process group with gloo and the settings in ``env_cfg.dist_cfg``, unless it exists."""
    if is_distributed():
        return
    os.environ.setdefault("MASTER_PORT", "29500")
    if port is not None:
        os.environ["MASTER_PORT"] = str(port)
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = first_slurm_host()
    init_process_group("gloo", timeout=None if timeout is None else timedelta(seconds=timeout))
    atexit.register(destroy_gloo)


def destroy_gloo() -> None:
    """Destroy the process group, one of whose threads may otherwise abort the process while Python exits."""
    gc.collect()  # leftovers of the runner hold references to the group
    if is_distributed():
        destroy_process_group()


def first_slurm_host() -> str:
    """Return the name of the first machine of a slurm job, where process 0 runs."""
    nodes = os.environ.get("SLURM_NODELIST")
    try:
        return subprocess.check_output(["scontrol", "show", "hostname", nodes or ""], text=True).split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise MMRepMLPError(
            f"the address of process 0 is unknown: MASTER_ADDR is not set, and slurm finds no host for "
            f"SLURM_NODELIST={nodes}. Set MASTER_ADDR to its host name or address."
        ) from error


def choose_cpu_wrapper(cfg: Config) -> None:
    """Replace MMEngine's model wrapper in a config by one that works without a GPU, and keep its settings."""
    default = dict(broadcast_buffers=False)
    owner, name = cfg, "model_wrapper_cfg"
    if cfg.get("runner_type") == "FlexibleRunner":
        cfg.strategy = cfg.get("strategy") or dict(type="DDPStrategy")
        if cfg.strategy.type != "DDPStrategy":
            return
        owner, name = cfg.strategy, "model_wrapper"
    else:
        default["find_unused_parameters"] = cfg.get("find_unused_parameters", False)
    wrapper = dict(owner.get(name) or default)
    if wrapper.setdefault("type", "MMDistributedDataParallel") == "MMDistributedDataParallel":
        wrapper["type"] = CPU_WRAPPER
    owner[name] = wrapper

# SPDX-License-Identifier: Apache-2.0
"""Several processes, each with a GPU as MMEngine expects, or all on CPUs, where they talk over gloo."""

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

# Where each launcher says which process this is, and of how many.
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
    """Make a config and this process ready for MMEngine's runner, where MMEngine alone would ask for a GPU.

    With GPUs MMEngine does everything. Without one the process group is set up here, on gloo, and the config is given
    model wrappers that work on a CPU.

    Args:
        cfg: The config of a run; changed in place.

    Raises:
        MMRepMLPError: The launcher left out a variable that it sets.
        ValueError: This process has no GPU for itself, though the machine has some.
    """
    if cfg.launcher == "none":
        disable_fsdp(cfg)
        return
    export_ranks(cfg.launcher)
    if torch.cuda.is_available():
        check_gpu(int(os.environ["LOCAL_RANK"]), torch.cuda.device_count())
    if get_device() == "cpu":
        init_gloo(**(cfg.get("env_cfg", {}).get("dist_cfg") or {}))
        choose_cpu_wrapper(cfg)
        print_log("There is no GPU: the processes talk over gloo, the model's wrapper is one for CPUs.", "current")


def export_ranks(launcher: str) -> None:
    """Say in torch's variables which process this is.

    Args:
        launcher: What started this process: pytorch, slurm or mpi.

    Raises:
        MMRepMLPError: The launcher left out a variable that it sets.
    """
    for name, source in VARIABLES[launcher].items():
        if source not in os.environ:
            raise MMRepMLPError(
                f"--launcher {launcher} reads the environment variable {source}, which is not set. Start the processes "
                f"with {STARTERS[launcher]}, or this one alone with --launcher none."
            )
        os.environ[name] = os.environ[source]


def check_gpu(local_rank: int, gpus: int) -> None:
    """Refuse more processes on a machine than it has GPUs.

    Args:
        local_rank: Number of this process on this machine, from 0.
        gpus: Number of GPUs that the process sees.

    Raises:
        ValueError: There is no GPU for this process.
    """
    if local_rank >= gpus:
        raise ValueError(
            f"process {local_rank} on this machine, counted from 0, has no GPU: {gpus} can be seen. Start at most "
            f"{gpus} a machine, or set CUDA_VISIBLE_DEVICES= to run on CPUs."
        )


def init_gloo(timeout: float | None = None, port: int | None = None, **unused) -> None:
    """Set up the default process group on gloo, unless there is one.

    Args:
        timeout: Seconds that a process waits for another. Default: torch's, 30 minutes.
        port: Port of process 0. Default: ``MASTER_PORT``, or 29500.
        **unused: Further settings of ``env_cfg.dist_cfg``, which are for GPUs.

    Raises:
        MMRepMLPError: The address of process 0 is not known.
    """
    if is_distributed():
        return
    if port is not None:
        os.environ["MASTER_PORT"] = str(port)
    os.environ.setdefault("MASTER_PORT", "29500")
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = first_slurm_host()
    init_process_group("gloo", timeout=None if timeout is None else timedelta(seconds=timeout))
    atexit.register(leave_gloo)


def leave_gloo() -> None:
    """End the process group, and the threads that serve it.

    A thread that lets go of its last piece of work while Python itself is ending aborts the process.
    """
    gc.collect()  # what is left of the runner holds on to the group
    if is_distributed():
        destroy_process_group()


def first_slurm_host() -> str:
    """Name of the first machine of a slurm job, where process 0 runs.

    Raises:
        MMRepMLPError: This is no slurm job, or slurm does not answer.
    """
    nodes = os.environ.get("SLURM_NODELIST")
    try:
        hosts = subprocess.run(
            ["scontrol", "show", "hostname", nodes or ""], capture_output=True, text=True, check=True
        )
        return hosts.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise MMRepMLPError(
            f"the machine of process 0 is not known: MASTER_ADDR is not set, and slurm names none in "
            f"SLURM_NODELIST={nodes}. Set MASTER_ADDR to its name or address."
        ) from error


def disable_fsdp(cfg: Config) -> None:
    """Take FSDP out of a config, for a run that has nothing to shard or works on whole weights.

    Args:
        cfg: The config of a run; changed in place.
    """
    if (cfg.get("strategy") or {}).get("type") in ("FSDPStrategy", "mmrepmlp.ShardedStrategy"):
        cfg.strategy = None
        print_log("FSDP is off: a single process, and an evaluation, hold the whole model.", "current")


def choose_cpu_wrapper(cfg: Config) -> None:
    """Give a config model wrappers that work without a GPU, keeping the settings of those it has.

    Args:
        cfg: The config of a run; changed in place.
    """
    if cfg.get("runner_type") == "FlexibleRunner":
        if cfg.get("strategy") is None:
            cfg.strategy = dict(type="DDPStrategy")
        if cfg.strategy.type == "DDPStrategy":
            cfg.strategy.model_wrapper = cpu_wrapper(cfg.strategy.get("model_wrapper"))
    else:
        cfg.model_wrapper_cfg = cpu_wrapper(
            cfg.get("model_wrapper_cfg"), find_unused_parameters=cfg.get("find_unused_parameters", False)
        )


def cpu_wrapper(wrapper: dict | None, **defaults) -> dict:
    """The counterpart of a distributed data-parallel wrapper for CPUs.

    Args:
        wrapper: Config of the wrapper. A type of its own stays. Default: MMEngine's wrapper.
        **defaults: Settings where no config is given.
    """
    if wrapper is None:
        wrapper = dict(broadcast_buffers=False, **defaults)
    if wrapper.get("type", "MMDistributedDataParallel") == "MMDistributedDataParallel":
        return {**wrapper, "type": CPU_WRAPPER}
    return wrapper

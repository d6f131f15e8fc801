# SPDX-License-Identifier: Apache-2.0
import os

import pytest
from mmengine.config import Config

from mmrepmlp.verbs.distributed import check_gpu, choose_cpu_wrapper, export_ranks, init_gloo

CPU = "mmrepmlp.CPUDistributedDataParallel"


@pytest.mark.parametrize(
    "launcher, given",
    [
        ("pytorch", ("RANK", "WORLD_SIZE", "LOCAL_RANK")),
        ("slurm", ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")),
        ("mpi", ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")),
    ],
)
def test_every_launcher_says_which_process_this_is(launcher, given):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", *given):
        os.environ.pop(name, None)
    with pytest.raises(RuntimeError, match=f"--launcher {launcher} reads .* {given[0]}, .*or this one alone with"):
        export_ranks(launcher)
    os.environ.update(zip(given, "352"))
    export_ranks(launcher)
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["3", "5", "2"]


def test_a_process_without_a_gpu_among_gpus_is_refused():
    check_gpu(1, 2)
    with pytest.raises(ValueError, match="process 2 on this machine.* 2 are visible. Start at most 2 per machine"):
        check_gpu(2, 2)


def test_process_0_must_be_findable(tmp_path):
    os.environ.pop("MASTER_ADDR", None)
    os.environ.update(SLURM_NODELIST="nowhere", PATH=str(tmp_path))
    with pytest.raises(RuntimeError, match="SLURM_NODELIST=nowhere. Set MASTER_ADDR"):
        init_gloo()


@pytest.mark.parametrize(
    "given, chosen",
    [
        ({}, dict(type=CPU, broadcast_buffers=False, find_unused_parameters=False)),
        (
            dict(find_unused_parameters=True),
            dict(type=CPU, broadcast_buffers=False, find_unused_parameters=True),
        ),
        (dict(model_wrapper_cfg=dict(static_graph=True)), dict(type=CPU, static_graph=True)),
        (dict(model_wrapper_cfg=dict(type="MMDistributedDataParallel", a=1)), dict(type=CPU, a=1)),
        (dict(model_wrapper_cfg=dict(type="Mine")), dict(type="Mine")),
    ],
)
def test_settings_of_a_wrapper_are_kept(given, chosen):
    cfg = Config(given)
    choose_cpu_wrapper(cfg)
    assert cfg.model_wrapper_cfg == chosen


@pytest.mark.parametrize(
    "strategy, chosen",
    [
        (None, dict(type="DDPStrategy", model_wrapper=dict(type=CPU, broadcast_buffers=False))),
        (
            dict(type="DDPStrategy", model_wrapper=dict(static_graph=True)),
            dict(type="DDPStrategy", model_wrapper=dict(type=CPU, static_graph=True)),
        ),
        (dict(type="DeepSpeedStrategy"), dict(type="DeepSpeedStrategy")),
    ],
)
def test_strategies_of_the_flexible_runner_are_kept(strategy, chosen):
    cfg = Config(dict(runner_type="FlexibleRunner", strategy=strategy))
    choose_cpu_wrapper(cfg)
    assert cfg.strategy == chosen and "model_wrapper_cfg" not in cfg

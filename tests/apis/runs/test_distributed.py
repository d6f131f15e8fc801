# SPDX-License-Identifier: Apache-2.0
import os

import pytest
import torch
import torch.distributed.fsdp
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import FUNCTIONS, MODEL_WRAPPERS, STRATEGIES
from torch import nn

from mmrepmlp.apis.runs.distributed import check_gpu, choose_cpu_wrapper, disable_fsdp, export_ranks, init_gloo
from mmrepmlp.engine import CPUDistributedDataParallel, ShardedStrategy, SwitchToDeployHook, shard_units
from mmrepmlp.models import RepMLPNet, RepMLPNetUnit
from tests.conftest import TINY

CPU = "mmrepmlp.CPUDistributedDataParallel"
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")


@pytest.fixture
def alone():
    """A process group of one, without a network."""
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "launcher, given",
    [
        ("pytorch", ("RANK", "WORLD_SIZE", "LOCAL_RANK")),
        ("slurm", ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")),
        ("mpi", ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")),
    ],
)
def test_every_launcher_says_which_process_this_is(monkeypatch, launcher, given):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", *given):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with pytest.raises(RuntimeError, match=f"--launcher {launcher} reads .* {given[0]}, .*or this one alone with"):
        export_ranks(launcher)
    for name, value in zip(given, "352"):
        monkeypatch.setenv(name, value)
    export_ranks(launcher)
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["3", "5", "2"]


def test_a_process_without_a_gpu_among_gpus_is_refused():
    check_gpu(1, 2)
    with pytest.raises(ValueError, match="process 2 on this machine.* 2 are visible. Start at most 2 per machine"):
        check_gpu(2, 2)


def test_process_0_must_be_findable(monkeypatch, tmp_path):
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_NODELIST", "nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
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
        (dict(type="mmrepmlp.ShardedStrategy"), dict(type="mmrepmlp.ShardedStrategy")),
    ],
)
def test_strategies_of_the_flexible_runner_are_kept(strategy, chosen):
    cfg = Config(dict(runner_type="FlexibleRunner", strategy=strategy))
    choose_cpu_wrapper(cfg)
    assert cfg.strategy == chosen and "model_wrapper_cfg" not in cfg


def test_one_process_shards_nothing():
    cfg = Config(dict(strategy=dict(type="mmrepmlp.ShardedStrategy")))
    disable_fsdp(cfg)
    assert cfg.strategy is None
    disable_fsdp(Config())


def test_everything_is_found_by_name():
    assert MODEL_WRAPPERS.get(CPU) is CPUDistributedDataParallel
    assert STRATEGIES.get("mmrepmlp.ShardedStrategy") is ShardedStrategy
    with FUNCTIONS.switch_scope_and_registry(None):
        assert FUNCTIONS.get("mmrepmlp.shard_units") is shard_units


@without_gpu
def test_sync_bn_becomes_bn_where_it_cannot_work(alone):
    def build():
        return nn.Sequential(nn.Linear(4, 4), nn.SyncBatchNorm(4))

    with pytest.raises(ValueError, match="SyncBatchNorm layers only work with GPU modules"):
        MMDistributedDataParallel(build())
    wrapped = CPUDistributedDataParallel(build(), device_ids=[0], find_unused_parameters=True)
    assert wrapped.device_ids is None and wrapped.find_unused_parameters
    wrapped(torch.rand(8, 4)).sum().backward()
    assert wrapped.module[1].num_batches_tracked == 1 and wrapped.module[1].weight.grad is not None


def test_whole_units_are_sharded():
    model = RepMLPNet(arch=TINY, img_size=64)
    assert [m for m in model.modules() if shard_units(m, False, 0)] == [u for stage in model.stages for u in stage]
    assert shard_units(model, True, 0) and isinstance(model.stages[0][0], RepMLPNetUnit)


def test_what_sharding_cannot_do_is_said():
    with pytest.raises(ValueError, match="flat_decay_mult applies to parameters of one dimension.* Set it to None"):
        ShardedStrategy.build_optim_wrapper(None, dict(paramwise_cfg=dict(flat_decay_mult=0.0)), nn.Linear(1, 1))
    with pytest.raises(ValueError, match="saved without FSDP"):
        ShardedStrategy.load_optim_state_dict(None, dict(state={0: {}}))


@without_gpu
def test_shards_are_not_converted(alone):
    runner = type("Runner", (), {})()
    runner.model = torch.distributed.fsdp.FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu"))
    with pytest.raises(RuntimeError, match="FSDP shards the weights.*tools/test.py --deploy"):
        SwitchToDeployHook(val=True).before_val_epoch(runner)

# SPDX-License-Identifier: Apache-2.0
import pytest
from mmengine.registry import FUNCTIONS, STRATEGIES
from torch import nn

from mmrepmlp.engine import ShardedStrategy, shard_units
from mmrepmlp.models import RepMLPNet, RepMLPNetUnit
from tests.conftest import TINY


def test_everything_is_found_by_name():
    assert STRATEGIES.get("mmrepmlp.ShardedStrategy") is ShardedStrategy
    with FUNCTIONS.switch_scope_and_registry(None):
        assert FUNCTIONS.get("mmrepmlp.shard_units") is shard_units


def test_whole_units_are_sharded():
    model = RepMLPNet(arch=TINY, img_size=64)
    assert [m for m in model.modules() if shard_units(m, False, 0)] == [u for stage in model.stages for u in stage]
    assert shard_units(model, True, 0) and isinstance(model.stages[0][0], RepMLPNetUnit)


def test_what_sharding_cannot_do_is_said():
    with pytest.raises(ValueError, match="flat_decay_mult applies to parameters of one dimension.* Set it to None"):
        ShardedStrategy.build_optim_wrapper(None, dict(paramwise_cfg=dict(flat_decay_mult=0.0)), nn.Linear(1, 1))
    with pytest.raises(ValueError, match="saved without FSDP"):
        ShardedStrategy.load_optim_state_dict(None, dict(state={0: {}}))

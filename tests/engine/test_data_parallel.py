# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from mmengine.model import MMDistributedDataParallel
from torch import nn

from mmrepmlp.engine import CPUDistributedDataParallel
from tests.helpers import without_gpu


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

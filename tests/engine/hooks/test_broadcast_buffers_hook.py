# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.runner.priority import get_priority
from torch import nn

from mmrepmlp.engine import BroadcastBuffersHook, SwitchToDeployHook
from mmrepmlp.engine.hooks import broadcast_buffers_hook as module


def test_the_first_process_gives_its_buffers_and_nothing_else(monkeypatch):
    monkeypatch.setattr(module, "broadcast", lambda buffer: buffer.fill_(7))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    BroadcastBuffersHook().before_val_epoch(SimpleNamespace(model=model))
    assert len(list(model.buffers())) == 3 and all((buffer == 7).all() for buffer in model.buffers())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))


@pytest.mark.parametrize(
    "earlier, later", [(EMAHook, BroadcastBuffersHook), (BroadcastBuffersHook, SwitchToDeployHook)]
)
def test_it_comes_after_averaged_weights_and_before_folding(earlier, later):
    assert get_priority(earlier.priority) < get_priority(later.priority)

# SPDX-License-Identifier: Apache-2.0
import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn

from tests.fixtures import ROOT


def test_layer_decay_says_what_it_needs():
    cfg = Config.fromfile(ROOT / "configs/upernet/upernet_repmlpnet-b256_4xb4-160k_ade20k-512x512_layer-decay.py")
    with pytest.raises(ValueError, match="Linear has no backbone with get_layer_depth"):
        build_optim_wrapper(nn.Linear(2, 2), cfg.optim_wrapper)
    cfg.optim_wrapper.paramwise_cfg.layer_decay_rate = 1.5
    with pytest.raises(ValueError, match=r"layer_decay_rate=1\.5 .* above 0, at most 1"):
        build_optim_wrapper(nn.Linear(2, 2), cfg.optim_wrapper)

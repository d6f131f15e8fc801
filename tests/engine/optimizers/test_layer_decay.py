# SPDX-License-Identifier: Apache-2.0
import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmrepmlp.models import RepMLPNet
from tests.conftest import TINY
from tests.fixtures import ROOT


def test_layer_decay_says_what_it_needs():
    cfg = Config.fromfile(ROOT / "configs/upernet/upernet_repmlpnet-b256_4xb4-160k_ade20k-512x512_layer-decay.py")
    with pytest.raises(ValueError, match="Linear has no backbone with get_layer_depth"):
        build_optim_wrapper(nn.Linear(2, 2), cfg.optim_wrapper)
    cfg.optim_wrapper.paramwise_cfg.layer_decay_rate = 1.5
    with pytest.raises(ValueError, match=r"layer_decay_rate=1\.5 .* above 0, at most 1"):
        build_optim_wrapper(nn.Linear(2, 2), cfg.optim_wrapper)


def test_layer_decay_alone_is_enough():
    model = nn.Module()
    model.backbone, model.head = RepMLPNet(TINY, 64), nn.Linear(64, 2)
    paramwise_cfg = dict(layer_decay_rate=0.5)
    cfg = dict(constructor="mmrepmlp.LayerDecayOptimWrapperConstructor", optimizer=dict(type="SGD", lr=1.0))
    groups = build_optim_wrapper(model, {**cfg, "paramwise_cfg": paramwise_cfg}).optimizer.param_groups
    rates = {group["params"][0]: group["lr"] for group in groups}
    # The stem, five units and the head.
    assert rates[model.head.weight] == 1 and rates[model.backbone.final_norm.weight] == 1
    assert rates[model.backbone.patch_embed.projection.weight] == 0.5**6
    assert rates[model.backbone.stages[0][0].norm1.weight] == 0.5**5
    assert rates[model.backbone.downsample_layers[2].conv.weight] == 0.5
    assert paramwise_cfg == dict(layer_decay_rate=0.5)

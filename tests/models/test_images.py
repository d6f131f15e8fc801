# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from torch import nn

from mmrepmlp.models import RepMLPNet, image_channels
from tests.conftest import TINY


@pytest.mark.parametrize("channels", [1, 3, 12])
@pytest.mark.parametrize("deploy", [False, True])
def test_of_a_repmlpnet(channels, deploy):
    model = nn.Module()
    model.backbone = RepMLPNet(TINY, img_size=64, in_channels=channels, deploy=deploy).double()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert image_channels(model) == image_channels(model.backbone) == channels
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_of_others_whose_attributes_say_something_else():
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        assert image_channels(MODELS.build(dict(type="EfficientNet", arch="b0"))) == 3
        assert image_channels(MODELS.build(dict(type="ResNet", depth=18, in_channels=4))) == 4
    with DefaultScope.overwrite_default_scope("mmdet"):  # pixels become channels first
        assert image_channels(MODELS.build(dict(type="mmdet.CSPDarknet", deepen_factor=0.33, widen_factor=0.25))) == 3
    assert image_channels(nn.Linear(5, 5)) == 3

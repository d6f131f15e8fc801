# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from torch import nn

from mmrepmlp.models import RepMLPNet, image_channels, image_size
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


class Stem(nn.Module):
    """What comes before the first layer, and that layer, as functions of the number of channels."""

    def __init__(self, channels, layer, before=lambda x: x):
        super().__init__()
        self.channels, self.layer, self.before = channels, layer, before

    def forward(self, x):
        return self.layer(self.before(x))


def add_coordinates(x):
    return torch.cat([x, x.new_zeros(len(x), 2, *x.shape[2:])], 1)


def unfold(x):
    return nn.functional.unfold(x, 4, stride=4).transpose(1, 2)


STEMS = {
    "norm": lambda c: Stem(c, nn.BatchNorm2d(c)),
    "grouped": lambda c: Stem(c, nn.Conv2d(c, 2 * c, 3, groups=c)),
    "linear": lambda c: Stem(c, nn.Linear(16 * c, 8), unfold),
    "rearranged": lambda c: Stem(c, nn.Conv2d(4 * c, 8, 3), nn.PixelUnshuffle(2)),
    "coordinates": lambda c: Stem(c, nn.Conv2d(c + 2, 8, 3), add_coordinates),
    "constants": lambda c: Stem(c, nn.Conv2d(c, 8, 3), lambda x: x - torch.zeros(c, 1, 1)),
}


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("stem", STEMS)
def test_of_any_stem(stem, channels):
    model = nn.Module()
    model.detector = nn.Module()
    model.detector.backbone = STEMS[stem](channels).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert image_channels(model) == channels
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("size", [96, (64, 96)])
def test_size_of_a_backbone_anywhere(size):
    model = nn.Module()
    model.detector = nn.Module()
    model.detector.encoder = RepMLPNet(TINY, img_size=size, in_channels=2)
    assert image_size(model) == ((96, 96) if size == 96 else size) and image_channels(model) == 2
    assert image_size(nn.Linear(5, 5)) == (224, 224)

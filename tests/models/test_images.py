# SPDX-License-Identifier: Apache-2.0
import pytest
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from torch import nn

from mmrepmlp.models import RepMLPNet, image_channels, image_size
from tests.conftest import TINY


@pytest.mark.parametrize("channels", [1, 3, 12])
@pytest.mark.parametrize("deploy", [False, True])
def test_of_a_repmlpnet(channels, deploy):
    model = nn.Module()
    model.head = nn.Conv2d(5, 5, 1)
    model.backbone = RepMLPNet(TINY, img_size=64, in_channels=channels, deploy=deploy).double()
    assert image_channels(model) == image_channels(model.backbone) == channels


def build(scope, **settings):
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(settings)


def test_of_others_whose_attributes_say_something_else():
    assert image_channels(build("mmpretrain", type="EfficientNet", arch="b0")) == 3
    assert image_channels(build("mmpretrain", type="ResNet", depth=18, in_channels=4)) == 4
    assert image_channels(nn.Linear(5, 5)) == 3


@pytest.mark.parametrize("mean, channels", [([127.5] * 3, 3), ([127.5], 1), (None, 12)])
def test_the_data_preprocessor_knows_first(mean, channels):
    # Pixels become channels before the first convolution, which has 12.
    preprocessor = dict(type="ImgDataPreprocessor", mean=mean, std=mean)
    model = nn.Module()
    model.data_preprocessor = build("mmengine", **preprocessor)
    model.backbone = build("mmdet", type="mmdet.CSPDarknet", deepen_factor=0.33, widen_factor=0.25)
    assert image_channels(model) == channels


@pytest.mark.parametrize("size", [96, (64, 96)])
def test_size_of_a_backbone_anywhere(size):
    model = nn.Module()
    model.detector = nn.Module()
    model.detector.encoder = RepMLPNet(TINY, img_size=size, in_channels=2)
    assert image_size(model) == ((96, 96) if size == 96 else size) and image_channels(model) == 2
    assert image_size(nn.Linear(5, 5)) == (224, 224)

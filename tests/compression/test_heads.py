# SPDX-License-Identifier: Apache-2.0
"""Feature maps that heads read in training alone, or none: whoever reads or adds to them follows."""

import copy
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmrepmlp.compression import CompressionError, find_groups
from mmrepmlp.compression.csgd_hook import cluster, filters
from mmrepmlp.compression.macs import MacsOfWidths
from mmrepmlp.compression.reduce import equalize, merge_clusters
from tests.compression.test_groups import RESNET, build, classifier, outputs
from tests.compression.toy import ToyClassifier
from tests.helpers import relative_error

BN = dict(type="BN")


def fcn(in_channels: int, in_index: int) -> dict:
    settings = dict(channels=8, num_convs=1, concat_input=False, num_classes=4, norm_cfg=BN)
    return dict(type="FCNHead", in_channels=in_channels, in_index=in_index, **settings)


SEGMENTOR = dict(
    type="mmseg.EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor"),
    decode_head=fcn(64, 3),
    auxiliary_head=[fcn(32, 2), fcn(16, 1)],
    backbone={**RESNET, "out_indices": (0, 1, 2, 3)},
)
VGG = dict(type="mmpretrain.VGG", depth=11, norm_cfg=BN, out_indices=(3, 4))


def merge(model: nn.Module, streams: bool = True) -> tuple[nn.Module, nn.Module, dict]:
    """A model whose filters are equal by clusters, the narrower one, and the groups."""
    groups, finished = find_groups(model, streams=streams), copy.deepcopy(model)
    clusters = {name: cluster(filters(model, group), 0.5, group.sets) for name, group in groups.items()}
    for name, group in groups.items():
        equalize(finished, group, clusters[name])
    narrower = copy.deepcopy(finished)
    for name, group in groups.items():
        merge_clusters(narrower, group, clusters[name])
    return finished, narrower, groups


@pytest.mark.parametrize(
    "cfg, name",
    [
        (SEGMENTOR, "backbone.layer3.0.downsample.0"),
        ({**SEGMENTOR, "backbone": VGG, "decode_head": fcn(512, 1), "auxiliary_head": fcn(512, 0)}, None),
    ],
    ids=["streams", "filters"],
)
def test_heads_that_only_train_read_fewer_channels_too(cfg, name):
    model, images = build(cfg, "mmseg"), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    finished, narrower, groups = merge(model, streams=name is not None)
    heads = cfg["auxiliary_head"] if isinstance(cfg["auxiliary_head"], list) else [None]
    assert not any(writer.startswith("auxiliary_head") for writer in groups)
    assert name is None or any(reader.startswith("auxiliary_head.0") for reader in groups[name].readers)

    def maps(model: nn.Module) -> list[torch.Tensor]:
        features = model.extract_feat(images)
        auxiliary = model.auxiliary_head if len(heads) > 1 else [model.auxiliary_head]
        return [head(features) for head in (model.decode_head, *auxiliary)]

    for actual, expected in zip(maps(narrower), maps(finished), strict=True):
        assert relative_error(actual, expected) < 1e-12
    share = MacsOfWidths(model, groups).share({group: 1 for group in groups})
    assert 0 < share < 1


def test_maps_stay_that_a_head_reads_which_needs_more():
    class NeedsMore(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(32, 1, 1)

        def forward(self, features: list[torch.Tensor], samples: list) -> torch.Tensor:
            return self.conv(features[2])

    model = build(SEGMENTOR, "mmseg")
    model.auxiliary_head = NeedsMore().double()
    groups = find_groups(model, streams=True)
    assert all("downsample" not in name for name in groups) and "backbone.layer3.0.conv1" in groups


def test_maps_that_no_head_reads_stay_whole():
    sizes = dict(num_modules=1, num_blocks=(1, 1), num_channels=(4, 8), block="BASIC")
    extra = dict(
        stage1=dict(num_modules=1, num_branches=1, block="BOTTLENECK", num_blocks=(1,), num_channels=(4,)),
        stage2=dict(num_branches=2, **sizes),
        stage3=dict(sizes, num_branches=3, num_blocks=(1,) * 3, num_channels=(4, 8, 16)),
        stage4=dict(sizes, num_branches=4, num_blocks=(1,) * 4, num_channels=(4, 8, 16, 32)),
    )
    cfg = classifier(dict(type="mmpretrain.HRNet", extra=extra))
    cfg["head"] = dict(cfg["head"], in_channels=32)
    model, images = build(cfg, "mmpretrain"), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    finished, narrower, groups = merge(model)
    assert any(len(group.writers) > 1 for group in groups.values())
    with torch.no_grad():
        for actual, expected in zip(outputs(narrower, images), outputs(finished, images), strict=True):
            assert relative_error(actual, expected) < 1e-12


def test_layers_that_compute_for_nothing_read_fewer_channels_too():
    backbone = dict(type="mmpretrain.MobileNetV2", widen_factor=0.25, out_indices=(6,))  # and its last convolution
    cfg = classifier(backbone)
    cfg["head"] = dict(cfg["head"], in_channels=80)
    model, images = build(cfg, "mmpretrain"), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    for streams in (False, True):
        finished, narrower, groups = merge(model, streams)
        (last,) = (group for name, group in groups.items() if name.startswith("backbone.layer7"))
        assert set(last.readers) == {"head.fc", "backbone.conv2.conv"}
        with torch.no_grad():
            for actual, expected in zip(outputs(narrower, images), outputs(finished, images), strict=True):
                assert relative_error(actual, expected) < 1e-12


class Gated(nn.Module):
    """Gates channels by something, and reads the result."""

    img_size = 8

    def __init__(self, gate: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.write, self.read, self.gate = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 1, 1), gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.write(x))
        return self.read(x * self.gate(x))


@pytest.mark.parametrize(
    "gate, found",
    [
        (lambda x: x.mean((2, 3), keepdim=True).sigmoid(), True),
        (lambda x: x.mean((-2, -1), keepdim=True).sigmoid(), True),
        (lambda x: 0.5, True),
        (lambda x: x.mean(1, keepdim=True).sigmoid(), False),
        (lambda x: x.mean(-3, keepdim=True).sigmoid(), False),
        (lambda x: x.mean().sigmoid(), False),
        (lambda x: torch.ones(6, 1, 1), False),
    ],
)
def test_means_over_channels_and_factors_of_each_channel_keep_them(gate, found):
    with nullcontext() if found else pytest.raises(CompressionError, match="Gated has no layer"):
        assert find_groups(Gated(gate), streams=True).keys() == {"write"}


def test_sums_that_begin_at_zero_are_streams():
    model = build(classifier(dict(type="mmpretrain.RepVGG", arch="A0")), "mmpretrain")
    assert any(len(group.writers) > 1 for group in find_groups(model.backbone, streams=True).values())


class Untraceable(ToyClassifier):
    """A network that fails on random images."""

    def extract_feat(self, images: torch.Tensor) -> torch.Tensor:
        raise TypeError("no such channels")

    forward = extract_feat


def test_what_cannot_be_traced_is_one_sentence():
    with pytest.raises(CompressionError, match="Untraceable cannot be traced on .*: TypeError: no such channels"):
        find_groups(Untraceable())

# SPDX-License-Identifier: Apache-2.0
"""Which channels of a model can be removed, and that removing them is exact."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.utils._pytree import tree_leaves

from mmrepmlp.compression import CompressionError, PrunedModel, find_groups
from mmrepmlp.compression.macs import MacsOfWidths, count
from mmrepmlp.compression.reduce import changed_widths, keep_filters, zero_filters
from mmrepmlp.reparam import switch_to_deploy
from mmrepmlp.verbs.model import call_model, random_images
from tests.compression.toy import ToyClassifier
from tests.conftest import SHALLOW
from tests.fixtures import ROOT
from tests.helpers import randomize, relative_error

CLASSIFIER = dict(
    type="mmpretrain.ImageClassifier",
    neck=dict(type="mmpretrain.GlobalAveragePooling"),
    head=dict(type="mmpretrain.LinearClsHead", num_classes=5, in_channels=64),
)
RESNET = dict(type="mmpretrain.ResNet", depth=18, base_channels=8, stem_channels=8)
REPMLPNET = dict(type="mmrepmlp.RepMLPNet", arch=SHALLOW, img_size=64)


TOWERS = {f"bbox_head.{tower}.{i}.conv" for tower in ("cls_convs", "reg_convs") for i in (0, 1)}


def classifier(backbone: dict) -> dict:
    return dict(CLASSIFIER, backbone=backbone)


def of_file(name: str) -> dict:
    return {**Config.fromfile(ROOT / "configs" / name).model, "data_preprocessor": None}


MODELS_AND_LAYERS = {
    # The first convolution of each block.
    "ResNet-18": (
        classifier(RESNET),
        "mmpretrain",
        {f"backbone.layer{i}.{j}.conv1" for i in range(1, 5) for j in (0, 1)},
    ),
    "RepMLPNet": (
        classifier(REPMLPNET),
        "mmpretrain",
        {
            f"backbone.stages.{i}.0.{layer}"
            for i in range(4)
            for layer in ("repmlp_block.gp.conv1.conv", "ffn_block.ffn_fc1.conv")
        },
    ),
}


def build(cfg: dict, scope: str) -> nn.Module:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(copy.deepcopy(cfg))
    model = randomize(model, torch.Generator().manual_seed(0), 0.2).double()
    model.eval()
    return model


UNITS = {
    f"backbone.stages.{i}.{j}.{layer}"
    for i, depth in enumerate((1, 1, 2, 1))
    for j in range(depth)
    for layer in ("repmlp_block.gp.conv1.conv", "ffn_block.ffn_fc1.conv")
}
SCENES = {
    "UperNet": (
        of_file("upernet/upernet_repmlpnet-mini_1xb16-900_digits-120x152.py"),
        "mmseg",
        UNITS | {"decode_head.fpn_bottleneck.conv"},
    ),
    "RetinaNet": (of_file("retinanet/retinanet_repmlpnet-mini_fpn_digits-120x152.py"), "mmdet", UNITS | TOWERS),
}


def outputs(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    return tree_leaves(call_model(model, images)[1])


def largest_error(model: nn.Module, images: torch.Tensor, expected: list[torch.Tensor]) -> float:
    return max(relative_error(*pair) for pair in zip(outputs(model, images), expected, strict=True))


@pytest.mark.parametrize(
    "cfg, scope, layers", [*MODELS_AND_LAYERS.values(), *SCENES.values()], ids=[*MODELS_AND_LAYERS, *SCENES]
)
@torch.no_grad()
def test_removing_channels_that_nothing_reads_is_exact(cfg, scope, layers):
    model = build(cfg, scope)
    with torch.enable_grad():
        groups = find_groups(model)
    assert groups.keys() == layers
    finished, generator = copy.deepcopy(model), torch.Generator().manual_seed(1)
    kept = {
        name: sorted(torch.randperm(group.channels, generator=generator)[: 1 + group.channels // 3].tolist())
        for name, group in groups.items()
    }
    for name, group in groups.items():
        zero_filters(finished, group, kept[name])
    narrower = copy.deepcopy(finished)
    for name, group in groups.items():
        keep_filters(narrower, group, kept[name])
    images = random_images(model, 2)
    expected = outputs(finished, images)
    assert largest_error(narrower, images, expected) < 1e-12
    assert largest_error(switch_to_deploy(copy.deepcopy(narrower)), images, expected) < 1e-10
    assert largest_error(model, images, expected) > 1e-3  # something was removed

    with DefaultScope.overwrite_default_scope(scope):
        again = PrunedModel(copy.deepcopy(cfg), changed_widths(narrower, groups)).double()
    again.load_state_dict(narrower.state_dict(), strict=True)
    again.eval()
    for actual, wanted in zip(outputs(again, images), outputs(narrower, images), strict=True):
        assert torch.equal(actual, wanted)
    share = MacsOfWidths(model, groups).share({name: len(rows) for name, rows in kept.items()})
    assert share == pytest.approx(count(narrower)[0] / count(model)[0], abs=1e-12)


def test_frozen_layers_stay():
    model = build({**RESNET, "frozen_stages": 2, "out_indices": (0, 1, 2, 3)}, "mmpretrain")
    assert set(find_groups(model)) == {f"layer{i}.{j}.conv1" for i in (3, 4) for j in (0, 1)}


def test_layers_are_picked_by_their_names_or_parts_of_them():
    model = build(classifier(REPMLPNET), "mmpretrain")
    assert len(find_groups(model, ["ffn_fc1"])) == 4 and len(find_groups(model, ["backbone.stages.1"])) == 2
    for missing in (
        "ffn",
        "backbone.downsample_layers.0.conv",
        "head.fc",
        "backbone.stages.1.0.ffn_block.ffn_fc2.conv",
    ):
        with pytest.raises(CompressionError, match=f"no filter of '{missing}' can be removed"):
            find_groups(model, [missing])


def test_what_can_only_be_removed_with_a_trace_stays():
    model = ToyClassifier()
    assert find_groups(model).keys() == {"conv1", "conv2"}  # conv3 is read twice, beside a tanh and by a sum
    sequence = [
        nn.Conv2d(3, 4, 1),
        nn.Sigmoid(),
        nn.Conv2d(4, 4, 1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.ReLU(),
    ]
    with pytest.raises(CompressionError, match="Sequential has no layer whose filters can be removed"):
        find_groups(nn.Sequential(*sequence))


@pytest.mark.parametrize(
    "widths, message",
    [
        ({"conv9": [4, 3]}, "no layer 'conv9'"),
        ({"conv1": [9, 3]}, r"conv1 has \[8, 3\] channels and cannot be narrowed to \[9, 3\]"),
        ({"conv1": [4]}, "cannot be narrowed"),
        ({"bn1": [0]}, "cannot be narrowed"),
    ],
)
def test_wrong_widths_are_one_sentence(widths, message):
    with pytest.raises(CompressionError, match=message):
        PrunedModel(dict(type="ToyClassifier"), widths)


def test_norms_without_a_scale_make_no_zeros():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with pytest.raises(CompressionError, match="no layer whose filters can be removed"):
        find_groups(model)
    assert find_groups(model, streams=True).keys() == {"0"}  # equal ones merge

# SPDX-License-Identifier: Apache-2.0
"""The proof on models of many kinds, and wrong conversions that it has to see."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from mmrepmlp.models import RepMLPNet
from mmrepmlp.reparam import switch_to_deploy
from mmrepmlp.verbs.reparameterize.reparameterize import ConversionError, raise_failures, share_of_same
from mmrepmlp.verbs.reparameterize.report import ConversionReport
from mmrepmlp.verbs.reparameterize.verification import compare_models, find_uncompared, is_converted
from tests.conftest import TINY
from tests.helpers import randomize


def network(kind=RepMLPNet, **settings):
    torch.manual_seed(0)
    return randomize(kind(TINY, img_size=64, out_indices=(2, 3), **settings), torch.Generator().manual_seed(0), 0.1)


class Model(nn.Module):
    """Calls what it is given; ``parts`` are modules by name."""

    def __init__(self, call=None, **parts):
        super().__init__()
        self.call = call or (lambda model, images: model.backbone(images))
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, images, mode):
        return self.call(self, images)


class TwoConvs(nn.Module):
    """A sum of two convolutions of the last map; the conversion can be made wrong."""

    def __init__(self, fault=None):
        super().__init__()
        self.deploy, self.fault = False, fault
        self.conv, self.point = nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 1)

    def forward(self, maps):
        x = maps[-1] if isinstance(maps, tuple) else maps
        return self.conv(x) if self.deploy else self.conv(x) + self.point(x)

    def switch_to_deploy(self):
        self.conv.weight.data[:, :, 1, 1] += self.point.weight.data[:, :, 0, 0]
        self.conv.bias.data += self.point.bias.data
        if self.fault == "channel":
            self.conv.bias.data[3] += 1e-6
        elif self.fault == "padding":
            self.conv.padding_mode, self.conv._reversed_padding_repeated_twice = "replicate", [1, 1, 1, 1]
        self.point, self.deploy = None, True


def not_callable(model, images):
    raise KeyError("annotations")


class Changing(nn.Module):
    """A part with a memory of its own."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls + np.random.rand() + random.random() + nn.functional.dropout(x)


class Zeros(RepMLPNet):
    def forward(self, x):
        return tuple(0 * out for out in super().forward(x))


class SixChannels(RepMLPNet):
    def forward(self, x):
        assert x.size(1) == self.in_channels and x.size(2) == self.img_size[0]
        return super().forward(x)


class FailsInDeployForm(RepMLPNet):
    def forward(self, x):
        if self.deploy:
            raise RuntimeError("not in this form")
        return super().forward(x)


class FailsInTrainingForm(RepMLPNet):
    def forward(self, x):
        assert self.deploy or x.size(2) == 64
        return super().forward(x)


class OneMapMore(RepMLPNet):
    def forward(self, x):
        outs = super().forward(x)
        return (*outs, outs[0]) if self.deploy else outs


def prove(model):
    model = model.double().eval()
    differences = compare_models(model, switch_to_deploy(copy.deepcopy(model)), torch.float64, 1e-10)
    uncompared = find_uncompared(model)
    unproven = [name for name in uncompared if is_converted(model, name)]
    raise_failures(ConversionReport("x.pth", (1, 1), (1, 1), differences, uncompared, unproven))
    return sorted({d.output.split(" ")[0] for d in differences})


MAPS = ["backbone.0", "backbone.1"]
PROVEN = {
    "bare": (lambda: network(), MAPS),
    "of another name": (lambda: Model(lambda m, x: m.encoder(x), encoder=network()), ["encoder.0", "encoder.1"]),
    "nested": (
        lambda: Model(not_callable, detector=Model(backbone=network(in_channels=5))),
        ["detector.backbone.0", "detector.backbone.1"],
    ),
    "several images": (
        lambda: Model(not_callable, backbone=network(), depth=network(in_channels=1)),
        [*MAPS, "depth.0", "depth.1"],
    ),
    "teacher": (lambda: Model(backbone=network(), teacher=nn.Sequential(network())), [*MAPS, "teacher.0.0"]),
    "one size": (lambda: Model(backbone=network(SixChannels, in_channels=6)), MAPS),
    "one size in training form": (lambda: Model(backbone=network(FailsInTrainingForm)), MAPS),
    "changing": (
        lambda: Model(lambda m, x: m.memory(m.backbone(x)[-1]), backbone=network(), memory=Changing()),
        MAPS,
    ),
    "converted head": (lambda: Model(not_callable, backbone=network(), head=TwoConvs()), [*MAPS, "head"]),
}


@pytest.mark.parametrize("kind", PROVEN)
def test_models_of_many_kinds(kind):
    build, outputs = PROVEN[kind]
    assert set(outputs) <= set(prove(build()))


WRONG = {
    "one channel of a head": lambda: Model(not_callable, backbone=network(), head=TwoConvs("channel")),
    "the border of a neck": lambda: Model(not_callable, backbone=network(), neck=TwoConvs("padding")),
    "a map more": lambda: Model(backbone=network(OneMapMore)),
    "a form that fails": lambda: Model(backbone=network(FailsInDeployForm)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_conversions_are_seen(kind):
    with pytest.raises(ConversionError, match="The deploy form differs"):
        prove(WRONG[kind]())


class TwoInputs(TwoConvs):
    def forward(self, maps, weights):
        return super().forward(maps) * weights


@pytest.mark.parametrize(
    "build, reason",
    [
        (lambda: Model(backbone=network(Zeros)), "backbone: it gives the same for all images"),
        (lambda: Model(not_callable, backbone=network(), head=TwoInputs()), "head: TypeError.*weights"),
    ],
)
def test_what_shows_nothing_is_no_proof(build, reason):
    with pytest.raises(ConversionError, match=f"{reason}.*--verify-on test"):
        prove(build())


@pytest.mark.parametrize("same, message", [(0.5, "50.00% of the predicted numbers"), (1.0, None)])
def test_predictions_prove_what_random_images_cannot(same, message):
    report = ConversionReport(
        "x.pth", (1, 1), (1, 1), [], {"backbone": "one size"}, ["backbone"], same_predictions=same
    )
    if message is None:
        raise_failures(report)
        return
    with pytest.raises(ConversionError, match=message):
        raise_failures(report)


def test_share_of_same():
    before = [{"gt_label": torch.ones(9), "scores": torch.tensor([1.0, 2.0]), "boxes": torch.zeros(2)}]
    after = [{"gt_label": torch.zeros(9), "scores": torch.tensor([1.0, 2.1]), "boxes": torch.zeros(3)}]
    assert share_of_same(before, before) == 1 and share_of_same(before, after) == 0.25 and share_of_same([], []) == 0

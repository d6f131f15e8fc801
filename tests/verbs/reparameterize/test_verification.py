# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from torch import nn

from mmrepmlp.models import RepMLPNet
from mmrepmlp.reparam import Difference, switch_to_deploy
from mmrepmlp.verbs.reparameterize.reparameterize import ConversionError, raise_failures
from mmrepmlp.verbs.reparameterize.report import ConversionReport
from mmrepmlp.verbs.reparameterize.verification import compare_models, find_uncompared, verify_in_float64
from tests.conftest import TINY
from tests.helpers import randomize, render

NAN = float("nan")


class Model(nn.Module):
    """A model whose head makes much of rounding."""

    def __init__(self, called_as_module: bool = True) -> None:
        super().__init__()
        network = RepMLPNet(TINY, img_size=64, out_indices=(2, 3))
        self.backbone = randomize(network, torch.Generator().manual_seed(0), spread=0.1)
        self.head = nn.Linear(64, 3)
        self.called_as_module = called_as_module

    def forward(self, images, mode):
        maps = self.backbone(images) if self.called_as_module else self.backbone.forward(images)
        return torch.frac(self.head(maps[-1].mean((2, 3))) * 1e16)


class NotCallable(Model):
    def forward(self, images, mode):
        raise KeyError("annotations")


class BreaksConverted(Model):
    def forward(self, images, mode):
        if self.backbone.deploy:
            raise ValueError("only in training form")
        return super().forward(images, mode)


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    model = Model().double().eval()
    return model, switch_to_deploy(copy.deepcopy(model))


def compare(before, after):
    return compare_models(before, after, torch.float64, 1e-10)


def test_heads_that_are_untouched_are_reported_alone(pair):
    differences = compare(*pair)
    assert [d.output for d in differences if d.required] == [
        f"backbone.{i}{size}" for size in ("", " (83 x 83 pixels)") for i in (0, 1)
    ]
    heads = [d for d in differences if not d.required]
    assert len(heads) == 2 and all(d.accepted and not d.within_tolerance for d in heads)
    report = ConversionReport("x.pth", (1, 1), (1, 1), differences)
    raise_failures(report)
    assert "their larger difference is what they make of rounding" in " ".join(render(report.table()).split())


@pytest.mark.parametrize("part", ["head.weight", "backbone.final_norm.bias", "backbone.patch_embed.projection.weight"])
def test_any_change_makes_the_heads_count(pair, part):
    model, converted = pair[0], copy.deepcopy(pair[1])
    converted.get_parameter(part).data.view(-1)[0] += 1e-3
    differences = compare(model, converted)
    assert all(d.required for d in differences)
    with pytest.raises(ConversionError, match="The deploy form differs"):
        raise_failures(ConversionReport("x.pth", (1, 1), (1, 1), differences))


def test_maps_that_hooks_do_not_see_are_compared_as_well():
    model = Model(called_as_module=False).eval()
    differences = verify_in_float64(model, switch_to_deploy)
    assert len(differences) == 6 and all(d.accepted for d in differences)
    assert sum(d.required and d.within_tolerance and d.output.startswith("backbone") for d in differences) == 4


def test_heads_that_cannot_be_called_leave_the_maps():
    model = NotCallable().eval()
    assert find_uncompared(model) == {"heads": "KeyError: 'annotations'"}
    differences = verify_in_float64(model, switch_to_deploy)
    assert len(differences) == 4 and all(d.output.startswith("backbone") and d.within_tolerance for d in differences)
    report = ConversionReport("x.pth", (1, 1), (1, 1), differences, find_uncompared(model))
    assert "Not compared on random images: heads (KeyError: 'annotations')" in " ".join(render(report.table()).split())


def test_heads_that_fail_after_the_conversion_are_a_failure():
    differences = verify_in_float64(BreaksConverted().eval(), switch_to_deploy)
    heads = [d for d in differences if d.output.startswith("head")]
    assert len(heads) == 2 and all(d.required and d.relative == float("inf") for d in heads)


def test_nothing_compared_is_no_proof():
    with pytest.raises(ConversionError, match="Random images show nothing"):
        raise_failures(ConversionReport("x.pth", (1, 1), (1, 1), []))


@pytest.mark.parametrize(
    "before, after, refused",
    [(90.0, 90.02, True), (90.0, 90.001, False), (NAN, NAN, False), (90.0, NAN, True), (NAN, 90.0, True)],
)
def test_metrics_have_to_agree_unless_heads_make_much_of_rounding(before, after, refused):
    equal = Difference("backbone.0", torch.float64, 0.0, 0.0, 1e-10)
    head = Difference("head", torch.float64, 0.5, 0.5, 1e-10, required=False)
    metrics = {"mIoU": (before, after)}
    assert bool(ConversionReport("x.pth", (1, 1), (1, 1), [equal], metrics=metrics).failures()) is refused
    assert not ConversionReport("x.pth", (1, 1), (1, 1), [equal, head], metrics=metrics).failures()

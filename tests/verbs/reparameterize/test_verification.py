# SPDX-License-Identifier: Apache-2.0
"""The verification on models of many kinds, and wrong conversions that it has to see."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from mmrepmlp.models import RepMLPNet
from mmrepmlp.reparam import switch_to_deploy
from mmrepmlp.verbs.reparameterize.reparameterize import ConversionError, raise_failures
from mmrepmlp.verbs.reparameterize.report import ConversionReport
from mmrepmlp.verbs.reparameterize.verification import Forms, Verification, changed_tensors
from tests.conftest import TINY
from tests.helpers import randomize, render

NAN = float("nan")


def verify(model, after=None, verification=Verification):
    """What ``reparameterize_checkpoint`` does: compare a model with its conversion in float64, and in float32."""
    model = model.eval()
    double = copy.deepcopy(model).double()
    written = after or switch_to_deploy(copy.deepcopy(model))
    forms = [
        Forms(double, switch_to_deploy(copy.deepcopy(double)), torch.float64, 1e-10),
        Forms(model, written, torch.float32, 1e-5),
    ]
    found = verification(model, forms)
    found.run_on_random_images()
    changed = changed_tensors(model, written, found.all_names(), torch.float32)
    report = ConversionReport("x.pth", (1, 1), (1, 1), found.names, found.differences, changed)
    raise_failures(report, found.unverified())
    return report


def outputs_of(report):
    """The outputs that had to agree in both precisions."""
    required = [
        {d.output for d in report.differences if d.required and d.dtype is t} for t in (torch.float64, torch.float32)
    ]
    assert required[0] == required[1]
    return required[0]


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


class Branches(nn.Module):
    """A sum of two convolutions; the conversion can be made wrong."""

    img_size = 64  # small images for what is called by itself

    def __init__(self, channels=64, fault=None):
        super().__init__()
        self.deploy, self.fault = False, fault
        self.conv, self.point = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)

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
        elif self.fault == "nan":
            self.conv.bias.data[3] = NAN
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


class InPlace(nn.Module):
    """Overwrites its input, and what the converted module in it gives."""

    def __init__(self, channels=3):
        super().__init__()
        self.branches = Branches(channels)

    def forward(self, x):
        x = nn.functional.relu(self.branches(x), inplace=True).mul_(2)
        return self.branches(x).add_(1)


class ReluFirst(Branches):
    def forward(self, x):
        return super().forward(x.relu_())


class TwoInputs(Branches):
    def forward(self, maps, weights):
        return super().forward(maps) * weights


class Float32Only(nn.Module):
    """A part that no model in float64 gets past."""

    def forward(self, x):
        assert x.dtype is torch.float32
        return x


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


class WithFeatures(Model):
    """A detector, whose heads need more than images."""

    def extract_feat(self, images):
        return self.neck(self.backbone(images))


def shared():
    branches = Branches(3)
    return Model(lambda m, x: m.second(m.first(x)), first=branches, second=branches)


def twice(model, images):
    return model.branches(model.branches(images) ** 2)


def student_and_teacher():
    parts = [Model(lambda m, x: m.head(m.backbone(x)), backbone=network(), head=Branches()) for _ in range(2)]
    return Model(not_callable, student=parts[0], teacher=parts[1])


MAPS = {"backbone.0", "backbone.1"}
PROVEN = {
    "bare": (lambda: network(), {"model.0", "model.1"}),
    "of another name": (lambda: Model(lambda m, x: m.encoder(x), encoder=network()), {"encoder.0", "encoder.1"}),
    "nested": (
        lambda: Model(not_callable, detector=Model(backbone=network(in_channels=5))),
        {"detector.backbone.0", "detector.backbone.1"},
    ),
    "two backbones": (
        lambda: Model(lambda m, x: [*m.backbone(x), *m.other(x)], backbone=network(), other=network()),
        MAPS | {"other.0", "other.1"},
    ),
    "several images": (
        lambda: Model(not_callable, backbone=network(), depth=network(in_channels=1)),
        MAPS | {"depth.0", "depth.1"},
    ),
    "a teacher that is not called": (
        lambda: Model(backbone=network(), teacher=nn.Sequential(network())),
        MAPS | {"teacher.0.0", "teacher.0.1"},
    ),
    "student and teacher": (
        student_and_teacher,
        {f"{name}.{part}" for name in ("student", "teacher") for part in (*MAPS, "head")},
    ),
    "one size": (lambda: Model(backbone=network(SixChannels, in_channels=6)), MAPS),
    "one size in training form": (lambda: Model(backbone=network(FailsInTrainingForm)), MAPS),
    "changing": (lambda: Model(lambda m, x: m.memory(m.backbone(x)[-1]), backbone=network(), memory=Changing()), MAPS),
    "converted head": (lambda: Model(not_callable, backbone=network(), head=Branches()), MAPS | {"head"}),
    "neck and uncallable head": (
        lambda: WithFeatures(not_callable, backbone=network(), neck=Branches(), head=nn.Linear(3, 3)),
        MAPS | {"neck"},
    ),
    "behind a part for float32": (
        lambda: Model(
            lambda m, x: m.neck(m.part(m.backbone(x)[-1])), backbone=network(), part=Float32Only(), neck=Branches()
        ),
        MAPS | {"neck"},
    ),
    "in place": (lambda: Model(lambda m, x: m.part(x), part=InPlace()), {"part.branches"}),
    "overwrites its input": (lambda: Model(lambda m, x: m.part(x), part=ReluFirst(3)), {"part"}),
    "shared": (shared, {"first", "second"}),
    "called twice": (lambda: Model(twice, branches=Branches(3)), {"branches"}),
    "of two inputs": (
        lambda: Model(lambda m, x: m.head(m.backbone(x), weights=x.mean()), backbone=network(), head=TwoInputs()),
        MAPS | {"head"},
    ),
    "called past its hooks": (lambda: Model(lambda m, x: m.backbone.forward(x), backbone=network()), MAPS),
}


@pytest.mark.parametrize("kind", PROVEN)
def test_models_of_many_kinds(kind):
    build, outputs = PROVEN[kind]
    assert outputs_of(verify(build())) == outputs


WRONG = {
    "one channel by 1e-6": lambda: Model(not_callable, backbone=network(), head=Branches(fault="channel")),
    "the border": lambda: Model(not_callable, backbone=network(), neck=Branches(fault="padding")),
    "not a number": lambda: Model(not_callable, backbone=network(), head=Branches(fault="nan")),
    "of a module that is called before": lambda: Model(
        lambda m, x: m.second(m.first(x)), first=Branches(3), second=Branches(3, "padding")
    ),
    "a map more": lambda: Model(backbone=network(OneMapMore)),
    "a form that fails": lambda: Model(backbone=network(FailsInDeployForm)),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_conversions_are_seen(kind):
    with pytest.raises(ConversionError, match="The deploy form differs.* in float64"):
        verify(WRONG[kind]())


def test_any_call_of_a_module_counts():
    class WrongWhenSmall(Branches):
        def forward(self, x):
            out = super().forward(x)
            return out + 1e-3 if self.deploy and x.abs().max() < 1e-3 else out

    verify(Model(lambda m, x: m.part(x), part=WrongWhenSmall(3)))
    with pytest.raises(ConversionError, match="The deploy form differs"):
        verify(Model(lambda m, x: m.part(m.part(x) * 1e-9), part=WrongWhenSmall(3)))


def test_tiles_that_are_no_whole_number_count():
    class WrongAtTheRim(RepMLPNet):
        def forward(self, x):
            outs = super().forward(x)
            return tuple(out + 1 for out in outs) if self.deploy and x.size(2) % 64 else outs

    with pytest.raises(ConversionError, match="The deploy form differs"):
        verify(Model(backbone=network(WrongAtTheRim)))


@pytest.mark.parametrize(
    "build, reason",
    [
        (lambda: Model(backbone=network(Zeros)), "backbone: its outputs are the same for all images"),
        (lambda: Model(not_callable, backbone=network(), head=TwoInputs()), "head: TypeError.*weights"),
        (lambda: Model(backbone=network(), head=nn.ModuleList([Unreachable()])), r"head\.0: KeyError"),
    ],
)
def test_what_shows_nothing_is_no_proof(build, reason):
    with pytest.raises(
        ConversionError, match=f"cannot be verified on random images .*{reason}.*Nothing was written.*--verify-on test"
    ):
        verify(build())


class Unreachable(Branches):
    def forward(self, x):
        raise KeyError("annotations")


def test_modules_that_no_pass_reaches_are_named():
    class NoPass(Verification):
        def run_on_random_images(self):
            pass

    with pytest.raises(ConversionError, match="backbone: no forward pass reached it; neck: no forward pass reached it"):
        verify(Model(backbone=network(), neck=Branches()), verification=NoPass)


class MakesMuchOfRounding(Model):
    """A model whose head makes much of rounding."""

    def __init__(self):
        super().__init__(lambda m, x: torch.sin(m.head(m.backbone(x)[-1].mean((2, 3))) * 1e7), backbone=network())
        self.head = nn.Linear(64, 3)


def test_heads_that_are_untouched_are_reported_alone():
    report = verify(MakesMuchOfRounding())
    (whole,) = (d for d in report.differences if not d.required)
    assert whole.accepted and not whole.within_tolerance and whole.output == "whole model, output"
    assert "larger difference of the whole model is rounding, amplified by its heads" in " ".join(
        render(report.table()).split()
    )


@pytest.mark.parametrize("part", ["head.weight", "backbone.final_norm.bias", "backbone.patch_embed.projection.weight"])
def test_any_change_of_a_tensor_is_seen(part):
    model = MakesMuchOfRounding().eval()
    converted = switch_to_deploy(copy.deepcopy(model))
    converted.get_parameter(part).data.view(-1)[0] += 1e-3
    message = "head.weight differs, although its module" if part == "head.weight" else r"backbone\.. in float32"
    with pytest.raises(ConversionError, match=f"The deploy form differs: {message}"):
        verify(model, converted)


def test_tensors_of_other_modules_are_the_same_but_for_the_cast():
    model = Model(lambda m, x: m.head(m.backbone(x)), backbone=network(), head=nn.BatchNorm2d(64))
    converted = switch_to_deploy(copy.deepcopy(model)).half().float()
    assert changed_tensors(model, converted, ["backbone"], torch.float16) == []
    model.head.weight.data += 1e-6
    assert changed_tensors(model, converted, ["backbone"], torch.float16) == []
    assert changed_tensors(model, converted, ["backbone"], torch.float32) == ["head.weight"]
    model.head.num_batches_tracked += 1
    del converted.head.weight
    converted.head.register_buffer("more", torch.zeros(1))
    changed = changed_tensors(model, converted, ["backbone"], torch.float16)
    assert sorted(changed) == ["head.more", "head.num_batches_tracked", "head.weight"]
    assert changed_tensors(model, converted, [""], torch.float16) == []


def test_models_that_cannot_be_called_leave_their_parts():
    report = verify(Model(not_callable, backbone=network()))
    assert all(d.required for d in report.differences)
    assert "The whole model cannot be called on images alone." in " ".join(render(report.table()).split())


def test_models_that_fail_after_the_conversion_are_refused():
    def only_in_training_form(model, images):
        if model.backbone.deploy:
            raise ValueError("only in training form")
        return model.backbone(images)

    with pytest.raises(ConversionError, match=r"differs: whole model, output\.0 in float32: inf"):
        verify(Model(only_in_training_form, backbone=network()))


def test_nothing_of_a_verification_is_left_in_the_model():
    model = Model(lambda m, x: m.memory(m.backbone(x)[-1]), backbone=network(), memory=Changing())
    verify(model)
    assert model.memory.calls == 0 and not any(module._forward_pre_hooks for module in model.modules())

# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmpretrain.models import ImageClassifier, MobileOne, RepVGG
from timm.utils.model import reparameterize_model
from torch import nn

import mmrepmlp
from mmrepmlp.models import RepMLPNet, RepMLPNetUnit
from mmrepmlp.models.repmlpnet.tiling import PAD_MODES
from mmrepmlp.reparam import convertible_modules
from tests.conftest import TINY
from tests.helpers import randomize, relative_error


@st.composite
def architectures(draw) -> dict:
    """Arguments of random small networks, of one to three stages, with rectangular tiles."""
    stages = draw(st.integers(1, 3))
    sets = [draw(st.sampled_from([1, 2, 3, 4])) for _ in range(stages)]
    patch = draw(st.sampled_from([1, 2, 4]))
    sides = st.integers(1, 16 * patch)
    return dict(
        arch=dict(
            channels=[count * draw(st.integers(1, 3)) * 4 for count in sets],
            depths=[draw(st.integers(1, 2)) for _ in range(stages)],
            sharesets_nums=sets,
        ),
        img_size=(draw(sides), draw(sides)),
        patch_size=patch,
        in_channels=draw(st.integers(1, 4)),
        out_indices=tuple(range(stages)),
        reparam_conv_kernels=sorted(draw(st.sets(st.sampled_from([1, 3, 5])))),
        pad_mode=draw(st.sampled_from(PAD_MODES)),
        fc3_norm_init=draw(st.sampled_from([0.1, 1.0])),
        globalperceptron_ratio=draw(st.sampled_from([1, 2, 4])),
        norm_cfg=dict(type="BN", eps=draw(st.sampled_from([1e-5, 1e-3]))),
        final_norm=draw(st.booleans()),
    )


def tiny(spread: float = 0.5, **arguments) -> RepMLPNet:
    model = RepMLPNet(TINY, 64, out_indices=(0, 1, 2, 3), **arguments)
    return randomize(model, torch.Generator().manual_seed(0), spread).eval()


@settings(max_examples=40)
@given(arguments=architectures(), spread=st.sampled_from([0.1, 0.5, 1.0]), data=st.data())
def test_deploy_form_equals_training_form(arguments, spread, data):
    model = randomize(RepMLPNet(**arguments), torch.Generator().manual_seed(0), spread).eval()
    height, width = (data.draw(st.integers(1, 3 * side)) for side in model.img_size)
    x = torch.randn(2, arguments["in_channels"], height, width)
    deployed = mmrepmlp.switch_to_deploy(copy.deepcopy(model))
    folded = RepMLPNet(**arguments, deploy=True)
    folded.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(folded.state_dict(), deployed.state_dict(), rtol=0, atol=0)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(x.double())
        deployed_double = mmrepmlp.switch_to_deploy(copy.deepcopy(model).double())(x.double())
        for reference, double, single, trained in zip(exact, deployed_double, deployed(x), model(x)):
            assert relative_error(double, reference) < 1e-10
            # Extreme statistics cost float32 digits in either form; folding may not cost many more.
            assert relative_error(single, reference) < 1e-5 + 20 * relative_error(trained, reference)


def test_a_block_converts_before_its_unit_by_the_authors_names_as_well():
    unit = randomize(RepMLPNetUnit(8, h=3, w=5, num_sharesets=2, reparam_conv_kernels=(1, 3)), torch.Generator())
    unit, x = unit.double().eval(), torch.randn(2, 8, 7, 9, dtype=torch.float64)
    expected = unit(x)
    unit.repmlp_block.local_inject()
    assert unit.repmlp_block.deploy and not unit.deploy
    assert relative_error(unit(x), expected) < 1e-10
    unit.switch_to_deploy()
    assert relative_error(unit(x), expected) < 1e-10
    model = tiny()
    model.locality_injection()
    assert model.deploy


def test_equivalent_fc3_is_differentiable_and_what_conversion_writes():
    block = tiny().stages[1][0].repmlp_block.double()
    weight, bias = block.equivalents()["fc3"]
    (weight.square().sum() + bias.square().sum()).backward()
    branches = [block.fc3.weight, block.fc3_bn.weight, block.repconv3.conv.weight, block.repconv1.bn.bias]
    assert all(parameter.grad.abs().sum() > 0 for parameter in branches)
    block.switch_to_deploy()
    assert torch.equal(block.fc3.weight, weight) and torch.equal(block.fc3.bias, bias)


@pytest.mark.parametrize("inside_classifier", [False, True])
def test_timm_converts_it_too(inside_classifier):
    model, x = tiny().double(), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    whole = nn.ModuleDict(dict(backbone=model)) if inside_classifier else model
    converted = reparameterize_model(whole)
    converted = converted["backbone"] if inside_classifier else converted
    if not inside_classifier:  # timm converts what is inside; final_norm, which has no neighbour, is the network's own
        mmrepmlp.switch_to_deploy(converted)
    assert not model.deploy and converted.deploy
    for out, expected in zip(converted(x), model(x)):
        assert relative_error(out, expected) < 1e-10
    deployed = RepMLPNet(TINY, 64, deploy=True).double()
    deployed.load_state_dict(converted.state_dict(), strict=True)


@pytest.mark.parametrize("backbone", [lambda: RepVGG("A0"), lambda: MobileOne("s0"), tiny])
def test_walk_serves_any_backbone_inside_any_model(backbone):
    model = ImageClassifier(nn.Identity())  # any model that has the backbone somewhere inside
    model.backbone = randomize(backbone(), torch.Generator().manual_seed(0), 0.2)
    model.double().backbone.eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    before = model.backbone(x)
    parameters = sum(p.numel() for p in model.parameters())
    assert mmrepmlp.switch_to_deploy(mmrepmlp.switch_to_deploy(model)) is model
    assert model.backbone.deploy and sum(p.numel() for p in model.parameters()) != parameters
    for out, expected in zip(model.backbone(x), before):
        assert relative_error(out, expected) < 1e-10


@pytest.mark.parametrize("name", ["repvit_m0_9", "fastvit_t8", "repghostnet_050", "levit_128s", "mobileone_s0"])
@torch.no_grad()
def test_the_walk_serves_timm(name):
    network = randomize(timm.create_model(name, num_classes=5), torch.Generator().manual_seed(0), 0.1).double().eval()
    model, x = nn.ModuleDict(dict(backbone=network)).eval(), torch.randn(1, 3, 224, 224, dtype=torch.float64)
    expected = network(x)
    assert convertible_modules(model)
    assert mmrepmlp.switch_to_deploy(model) is model and not convertible_modules(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert not any(module.training for module in model.modules())
    assert relative_error(model["backbone"](x), expected) < 1e-10
    assert relative_error(mmrepmlp.switch_to_deploy(model)["backbone"](x), expected) < 1e-10


def test_only_methods_that_need_no_arguments_convert():
    class Fusion(nn.Module):
        def fuse(self, other):
            raise AssertionError

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.fuse, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    class Whole(nn.Sequential):
        def fuse(self):
            return self[0]

    assert not convertible_modules(nn.Sequential(Fusion(), Layer()))
    whole = Whole(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    shared = nn.ModuleList([whole, nn.Sequential(whole)])
    assert mmrepmlp.switch_to_deploy(whole) is whole[0]
    assert mmrepmlp.switch_to_deploy(shared)[0] is shared[1][0] is whole[0]


class PosesAsMMPoseDoes(nn.Module):
    """A model that passes the call on to its parts, with an argument, as MMPose's estimators do."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = tiny(), nn.Conv2d(TINY["channels"][-1], 2, 1)

    def forward(self, x):
        return self.head(self.backbone(x)[-1])

    def switch_to_deploy(self):
        for layer in self.modules():
            if layer is not self and callable(getattr(layer, "switch_to_deploy", None)):
                layer.switch_to_deploy(dict(flip_test=True))


@pytest.mark.parametrize("convert", [mmrepmlp.switch_to_deploy, PosesAsMMPoseDoes.switch_to_deploy])
def test_models_that_pass_the_call_on_with_an_argument(convert):
    model, x = PosesAsMMPoseDoes().double().eval(), torch.rand(1, 3, 64, 96, dtype=torch.float64)
    assert list(convertible_modules(model)) == ["backbone"]
    before = model(x)
    convert(model)
    assert model.backbone.deploy and not convertible_modules(model)
    assert relative_error(model(x), before) < 1e-10


def test_a_deployed_model_can_be_fine_tuned_saved_and_loaded():
    model = tiny(spread=0.1)
    model.switch_to_deploy()
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3)
    start, losses = copy.deepcopy(model.state_dict()), []
    x = torch.randn(4, 3, 64, 64)
    for _ in range(5):
        loss = sum((out - 1).square().mean() for out in model(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in model.parameters())
    unchanged = [name for name, value in model.state_dict().items() if torch.equal(start[name], value)]
    assert all(name.endswith("gp.conv1.conv.bias") for name in unchanged)  # a ReLU may be dead on this batch
    again = RepMLPNet(TINY, 64, out_indices=(0, 1, 2, 3), deploy=True)
    again.load_state_dict(model.state_dict(), strict=True)
    for a, b in zip(model.eval()(x), again.eval()(x)):
        assert torch.equal(a, b)

# SPDX-License-Identifier: Apache-2.0
import copy
import inspect

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from mmcv.cnn import ConvModule
from mmengine.model import initialize
from torch import nn

from mmrepmlp.models import ACBConv2d, DBBConv2d, ReparameterizableConv2d, RepVGGConv2d
from tests.helpers import randomize, relative_error

from .official import OfficialACB, OfficialDBB, OfficialRepVGG

STRUCTURES = {ACBConv2d: OfficialACB, DBBConv2d: OfficialDBB, RepVGGConv2d: OfficialRepVGG}
all_structures = pytest.mark.parametrize("kind", STRUCTURES)


def random_conv(kind: type, *arguments, **settings) -> nn.Module:
    return randomize(kind(*arguments, **settings), torch.Generator().manual_seed(0)).double()


@st.composite
def arguments(draw) -> tuple:
    groups = draw(st.sampled_from([1, 2, 3, 6]))
    in_channels, out_channels = draw(st.sampled_from([6, 12])), draw(st.sampled_from([6, 12]))
    pair = st.tuples(st.integers(1, 2), st.integers(1, 2))
    kernel = draw(st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([3, 5])))
    padding = draw(st.tuples(st.integers(0, 3), st.integers(0, 3)))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    return in_channels, out_channels, kernel, draw(pair), padding, draw(pair), groups, True, mode


@all_structures
@given(arguments=arguments(), size=st.tuples(st.integers(5, 14), st.integers(5, 14)))
def test_one_convolution_computes_what_the_branches_do(kind, arguments, size):
    in_channels, _, kernel, _, padding, dilation, *_ = arguments
    seen = [d * (k - 1) + 1 for k, d in zip(kernel, dilation)]
    assume(all(side + 2 * p >= k for side, p, k in zip(size, padding, seen)))
    conv, x = random_conv(kind, *arguments).eval(), torch.randn(2, in_channels, *size).double()
    with torch.no_grad():
        expected = conv(x)
        kernel, bias = conv.get_equivalent_kernel_bias()
        plain = nn.Conv2d(*arguments).double()
        assert expected.shape == plain(x).shape and kernel.dtype == torch.float64
        plain.weight.data, plain.bias.data = kernel, bias
        deployed = copy.deepcopy(conv)
        deployed.switch_to_deploy()
        assert relative_error(plain(x), expected) < 1e-12 and relative_error(deployed(x), expected) < 1e-12
    assert deployed.deploy and [name for name, _ in deployed.named_parameters()] == ["reparam.weight", "reparam.bias"]
    before = deployed.reparam
    deployed.switch_to_deploy()
    assert deployed.reparam is before


# The authors' asymmetric convolutions take any padding, the other structures half a kernel.
HALF = [(kind, kernel, kernel // 2) for kind in STRUCTURES for kernel in (3, 5)]


@pytest.mark.parametrize("kind, kernel, padding", [*HALF, (ACBConv2d, 3, 0), (ACBConv2d, 3, 2)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [(6, 6, 1), (6, 12, 1), (6, 12, 3), (6, 6, 6)], ids=str)
def test_the_authors_checkpoints_load_in_both_forms(kind, stride, channels, kernel, padding):
    in_channels, out_channels, groups = channels
    official = STRUCTURES[kind](in_channels, out_channels, kernel, stride, padding, groups)
    randomize(official, torch.Generator().manual_seed(1)).double()

    def build(**settings) -> nn.Module:
        return kind(in_channels, out_channels, kernel, stride, padding, groups=groups, **settings).double()

    ours, deployed, x = build(), build(deploy=True).eval(), torch.randn(3, in_channels, 9, 11).double()
    ours.load_state_dict(official.state_dict())
    for training in (True, False):  # a step of training moves the statistics, and the borders that are made of them
        expected, actual = official.train(training)(x).detach(), ours.train(training)(x).detach()
        assert relative_error(actual, expected) < 1e-12
    deployed.load_state_dict(official.state_dict())
    assert relative_error(deployed(x).detach(), expected) < 1e-12

    name = next(theirs for theirs, mine in ours.official_names().items() if mine == "reparam")
    state = {key.replace("reparam", name): value for key, value in deployed.state_dict().items()}
    converted = build(deploy=True)
    converted.load_state_dict(state)
    assert torch.equal(converted(x), deployed(x))


def test_inner_channels_of_a_diverse_branch_block():
    official = randomize(OfficialDBB(6, 12, 3, 1, 1, 3, 9), torch.Generator().manual_seed(1)).double().eval()
    ours = DBBConv2d(6, 12, 3, padding=1, groups=3, inner_channels=9).double().eval()
    ours.load_state_dict(official.state_dict())
    x = torch.randn(2, 6, 8, 8).double()
    assert relative_error(ours(x).detach(), official(x).detach()) < 1e-12
    with pytest.raises(ValueError, match="inner_channels=8 is not divisible by groups=3"):
        DBBConv2d(6, 12, 3, groups=3, inner_channels=8)


@all_structures
@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_weights_of_a_plain_convolution_are_those_of_the_main_branch(kind, deploy, bias):
    plain = nn.Conv2d(4, 8, 3, 2, 1, bias=bias).double()
    conv = kind(4, 8, 3, 2, 1, deploy=deploy).double().eval()
    assert not any(conv.load_state_dict(plain.state_dict(), strict=True))
    x = torch.randn(2, 4, 9, 9).double()
    assert relative_error(conv(x).detach(), plain(x).detach()) < 1e-12
    again = kind(4, 8, 3, 2, 1).double().eval()  # and of a deploy form
    conv.switch_to_deploy()
    again.load_state_dict(conv.state_dict())
    assert relative_error(again(x).detach(), plain(x).detach()) < 1e-12


@all_structures
def test_foreign_weights_are_reported(kind):
    with pytest.raises(RuntimeError, match="branches.*conv.weight"):
        kind(4, 8, 3).load_state_dict({"kernel": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        kind(4, 8, 3).load_state_dict(nn.Conv2d(4, 7, 3).state_dict())
    missing = kind(4, 8, 3).state_dict()
    del missing[next(iter(missing))]
    with pytest.raises(RuntimeError, match="[Mm]issing"):
        kind(4, 8, 3, deploy=True).load_state_dict(missing)


@all_structures
@pytest.mark.parametrize("kernel", [1, (1, 1), 2, (3, 4)], ids=str)
def test_other_kernels_stay_plain(kind, kernel):
    torch.manual_seed(0)
    conv = kind(4, 8, kernel, stride=2, bias=False, norm_cfg=dict(type="SyncBN"), deploy=True)
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 8, kernel, stride=2, bias=False)
    assert type(conv) is nn.Conv2d and torch.equal(conv.weight, plain.weight) and conv.bias is None


@all_structures
@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(groups=3), "in_channels must be divisible by groups"),
        (dict(padding_mode="mirror"), "padding_mode must be one of"),
        (dict(padding="same", stride=2), "padding='same' is not supported for strided"),
        (dict(norm_cfg=dict(type="GN", num_groups=2)), "builds a GroupNorm"),
        (dict(norm_cfg=dict(type="BN", affine=False)), "expected batch norms with weight and bias"),
    ],
)
def test_what_is_wrong_is_said(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(4, 8, 3, **arguments)


@all_structures
def test_attributes_are_those_of_a_convolution(kind):
    conv, plain = kind(4, 8, (3, 5), 2, "valid", 1, 2), nn.Conv2d(4, 8, (3, 5), 2, "valid", 1, 2)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "transposed"):
        assert getattr(conv, name) == getattr(plain, name)
    module = ConvModule(4, 8, 3, padding=1, conv_cfg=dict(type=f"mmrepmlp.{kind.__name__}"), norm_cfg=dict(type="BN"))
    module.init_weights()
    assert type(module.conv) is kind and module(torch.randn(2, 4, 6, 6)).shape == (2, 8, 6, 6)


@all_structures
def test_the_signature_is_that_of_the_constructor(kind):
    _, *expected = inspect.signature(ReparameterizableConv2d.__init__).parameters.values()
    assert [*inspect.signature(kind).parameters.values()] == expected


@all_structures
def test_every_parameter_learns_and_the_merged_kernel_too(kind):
    conv, x = random_conv(kind, 6, 6, 3, padding=1), torch.randn(3, 6, 7, 7).double()
    conv(x).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in conv.parameters())
    conv.zero_grad()
    kernel, bias = conv.get_equivalent_kernel_bias()
    (kernel.square().sum() + bias.square().sum()).backward()
    assert all(parameter.grad.any() for parameter in conv.parameters())


@all_structures
def test_training_can_start_from_the_main_branch_alone(kind):
    conv = kind(6, 6, 3, padding=1, single_init=True).eval()
    initialize(conv, dict(type="Constant", layer="_BatchNorm", val=1))
    main = next(iter(conv.branches.values()))
    x = torch.randn(2, 6, 7, 7)
    assert torch.equal(conv(x), main(x)) and main.bn.weight.eq(1).all()
    third = kind(6, 6, 3, gamma_init=1 / 3)
    assert all(norm.weight.eq(1 / 3).all() for norm in third.last_norms().values())

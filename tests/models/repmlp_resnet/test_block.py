# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrepmlp.models import RepMLPv1Block
from tests.helpers import randomize, relative_error

from .official import OfficialRepMLP, convert


def random_block(*arguments, seed: int = 0, spread: float = 0.5, **settings) -> RepMLPv1Block:
    torch.manual_seed(seed)
    return randomize(RepMLPv1Block(*arguments, **settings), torch.Generator().manual_seed(seed), spread).double()


def official(block: RepMLPv1Block, reduction: int) -> OfficialRepMLP:
    """The naive block with the same weights."""
    where = (block.in_channels, block.out_channels, *block.map_size, block.h, block.w)
    naive = OfficialRepMLP(*where, block.reparam_conv_kernels, reduction, block.groups).double()
    naive.load_state_dict(block.state_dict(), strict=True)
    return naive.train(block.training)


@st.composite
def arguments(draw) -> dict:
    groups, side = draw(st.sampled_from([1, 2, 3])), st.integers(1, 4)
    h, w = draw(side), draw(side)
    kernels = draw(st.lists(st.sampled_from([1, 3, 5, 7]), unique=True, max_size=3))
    return dict(
        in_channels=groups * draw(st.integers(1, 3)),
        out_channels=groups * draw(st.integers(1, 3)),
        map_size=(h * draw(st.integers(1, 3)), w * draw(st.integers(1, 3))),
        h=h,
        w=w,
        reparam_conv_kernels=kernels,
        groups=groups,
        globalperceptron_reduction=draw(st.sampled_from([1, 1, 2])) if h * w * groups > 1 else 1,
    )


def fits(settings: dict) -> bool:
    rows, columns = settings["map_size"][0] // settings["h"], settings["map_size"][1] // settings["w"]
    return rows * columns * settings["in_channels"] >= settings["globalperceptron_reduction"]


many = given(settings=arguments().filter(fits), seed=st.integers(0, 9))


@many
def test_it_computes_the_formulas(settings, seed):
    block = random_block(seed=seed, **settings)
    x = torch.randn(3, settings["in_channels"], *settings["map_size"], dtype=torch.float64)
    for training in (True, False):  # each entry of statistics comes from several samples
        naive = official(block.train(training), settings["globalperceptron_reduction"])
        with torch.no_grad():
            expected, actual = naive(x), copy.deepcopy(block)(x)
        assert actual.shape == (3, settings["out_channels"], *settings["map_size"])
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@many
def test_it_converts_exactly(settings, seed):
    block = random_block(seed=seed, **settings).eval()
    x = torch.randn(3, settings["in_channels"], *settings["map_size"], dtype=torch.float64)
    with torch.no_grad():
        expected, state = block(x), convert(official(block, settings["globalperceptron_reduction"]))
        block.switch_to_deploy()
        assert block.deploy and relative_error(block(x), expected) < 1e-12
    converted = block.state_dict()
    assert converted.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(converted[name], value, rtol=1e-10, atol=1e-10)
    before = dict(block.named_parameters())
    block.switch_to_deploy()
    assert all(parameter is before[name] for name, parameter in block.named_parameters())
    built = RepMLPv1Block(**settings, deploy=True).double().eval()
    built.load_state_dict(state, strict=True)
    assert relative_error(built(x).detach(), expected) < 1e-12


WIDER = dict(in_channels=8, out_channels=16, map_size=(6, 9), h=3, w=3, groups=4)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 5e-2), (torch.float16, 5e-3)])
def test_conversion_keeps_what_is_not_its_own(dtype, tolerance):
    block = random_block(**WIDER, spread=0.2).to(dtype).train()
    block.fc1_fc2.requires_grad_(False)
    block.avg.requires_grad_(False)
    block.fc3.weight.requires_grad = False
    x = torch.randn(2, 8, 6, 9).to(dtype)
    with torch.no_grad():
        expected = copy.deepcopy(block).float().eval()(x.float())
    block.switch_to_deploy()
    assert block.training and all(module.training for module in block.modules())
    assert {parameter.dtype for parameter in block.parameters()} == {dtype}
    assert [name for name, parameter in block.named_parameters() if parameter.requires_grad] == ["fc3.bias"]
    assert relative_error(block.eval()(x).detach(), expected) < tolerance


def test_gradients_reach_every_parameter_and_are_those_of_the_formulas():
    block = random_block(**WIDER, globalperceptron_reduction=2, spread=0.2)
    naive = official(block, 2)
    x, y = (torch.randn(3, 8, 6, 9, dtype=torch.float64).requires_grad_() for _ in range(2))
    y.data.copy_(x.data)
    upstream = torch.randn(3, 16, 6, 9, dtype=torch.float64)
    block(x).backward(upstream)
    naive(y).backward(upstream)
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-10, atol=1e-10)
    theirs = dict(naive.named_parameters())
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-9, atol=1e-9)


def test_the_merged_layers_are_differentiable():
    block = random_block(**WIDER)
    for layer in block.equivalents().values():
        sum(tensor.sum() for tensor in layer).backward()
    without = {name for name, parameter in block.named_parameters() if parameter.grad is None}
    assert without == {"fc1_fc2.fc2.weight", "fc1_fc2.fc2.bias"}


@pytest.mark.parametrize("deploy", [False, True])
def test_a_batch_of_no_maps_and_another_memory_format(deploy):
    block = random_block(**WIDER).eval()
    if deploy:
        block.switch_to_deploy()
    x = torch.randn(2, 8, 6, 9, dtype=torch.float64)
    assert block(x[:0]).shape == (0, 16, 6, 9) and block.train()(x[:0]).shape == (0, 16, 6, 9)
    assert relative_error(block.eval()(x.to(memory_format=torch.channels_last)), block(x)) < 1e-12


def test_fc3_starts_orthogonal():
    matrix = RepMLPv1Block(8, 8, 4, 2, 2).fc3.weight.flatten(1).double()
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(32).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("deploy", [False, True])
def test_one_partition_as_built_takes_any_whole_number_of_them(deploy):
    block = random_block(4, 8, (3, 2), 3, 2, groups=2, deploy=deploy).eval()
    assert not block.has_global_perceptron
    x = torch.randn(2, 4, 6, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.cat([torch.cat([block(p) for p in row.split(2, 3)], 3) for row in x.split(3, 2)], 2)
        assert relative_error(block(x), expected) < 1e-12
    with pytest.raises(ValueError, match="7x8 pixels, which is not a whole number of partitions of 3x2"):
        block(torch.randn(1, 4, 7, 8, dtype=torch.float64))


@pytest.mark.parametrize("dynamic", [None, True])
def test_it_compiles_and_exports(dynamic):
    block, x = random_block(**WIDER).eval(), torch.randn(2, 8, 6, 9, dtype=torch.float64)
    program = torch.export.export(block, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic else None)
    assert relative_error(program.module()(x), block(x).detach()) < 1e-12
    assert relative_error(torch.jit.trace(block, x)(x), block(x).detach()) < 1e-12


BAD = [
    (dict(in_channels=0), "in_channels=0: expected a positive int"),
    (dict(h=2.0), "h=2.0: expected a positive int"),
    (dict(groups=3), "groups=3 does not divide RepMLP's in_channels=8:"),
    (dict(groups=16), "groups=16 does not divide RepMLP's in_channels=8:"),
    (dict(groups=8, out_channels=12), "groups=8 does not divide RepMLP's out_channels=12:"),
    (dict(map_size=(6, 10)), r"map_size=\(6, 10\) is not divisible into partitions of h=3 by w=3"),
    (dict(map_size=(6, 9, 3)), r"map_size=\(6, 9, 3\): expected a positive int or a pair"),
    (dict(map_size=(0, 9)), r"map_size=\(0, 9\): expected a positive int or a pair"),
    (dict(reparam_conv_kernels=(1, 2)), r"reparam_conv_kernels=\(1, 2\): expected distinct, odd, positive ints"),
    (dict(reparam_conv_kernels=(3, 3)), r"reparam_conv_kernels=\(3, 3\): expected distinct"),
    (dict(globalperceptron_reduction=0), "globalperceptron_reduction=0: expected a positive int"),
    (dict(globalperceptron_reduction=49), "globalperceptron_reduction=49: expected at most 48"),
    (dict(norm_cfg=dict(type="GN", num_groups=1)), "Only batch norms can be fused"),
]


@pytest.mark.parametrize("changes, message", BAD, ids=lambda value: str(value)[:40])
def test_arguments_out_of_range_are_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        RepMLPv1Block(**{**WIDER, **changes})
    assert "\n" not in str(caught.value)

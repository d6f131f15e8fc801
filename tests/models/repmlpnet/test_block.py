# SPDX-License-Identifier: Apache-2.0
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmrepmlp.models import RepMLPBlock
from mmrepmlp.models.common import ConvNorm
from mmrepmlp.models.repmlpnet.block import SetSharingLinear
from mmrepmlp.models.repmlpnet.local import METHODS, SetConv2d
from mmrepmlp.models.repmlpnet.speed import multiply_by_onednn
from mmrepmlp.models.repmlpnet.tiling import PAD_MODES, join_tiles, split_tiles
from tests.helpers import naive_block, randomize, relative_error, source_pixels

small = st.integers(1, 4)


modes = st.sampled_from(PAD_MODES)
side = st.integers(1, 9)


@given(n=small, groups=small, sets=small, h=small, w=small, height=side, width=side, mode=modes)
def test_tiles_of_any_map_go_where_the_definition_says(n, groups, sets, h, w, height, width, mode):
    x = torch.arange(n * groups * sets * height * width, dtype=torch.float64).view(n, -1, height, width) + 1
    rows, columns = (source_pixels(*sides, mode) for sides in ((height, h), (width, w)))
    tiles = split_tiles(x, sets, h, w, mode).view(sets, n, len(rows), len(columns), groups, h, w)
    with_zero = F.pad(x, (0, 1, 0, 1))
    for s in range(sets):
        for row, (vertical, _) in enumerate(rows):
            for column, (horizontal, _) in enumerate(columns):
                window = with_zero[:, s::sets, vertical][..., horizontal]
                assert torch.equal(tiles[s, :, row, column], window)
    assert torch.equal(join_tiles(tiles.reshape(sets, -1, h * w), x.shape, h, w, mode), x)


@pytest.mark.parametrize(
    "mode, pixels, tiles",
    [
        ("zeros", 7, [[0, 1, 2], [3, 4, 5], [6, None, None]]),
        ("shift", 7, [[0, 1, 2], [3, 4, 5], [4, 5, 6]]),
        ("zeros", 2, [[0, 1, None]]),
        ("shift", 2, [[0, 1, 0]]),
        ("shift", 1, [[0, 0, 0]]),
    ],
)
def test_what_the_last_tile_sees(mode, pixels, tiles):
    row = torch.arange(float(pixels)).view(1, 1, 1, pixels) + 1
    expected = torch.tensor([[0.0 if pixel is None else pixel + 1.0 for pixel in tile] for tile in tiles])
    assert torch.equal(split_tiles(row, 1, 1, 3, mode), expected[None])


def test_one_tile_is_a_view():
    x = torch.randn(2, 6, 4, 5)
    assert split_tiles(x, 3, 4, 5).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("pixels", [9, 576], ids=["batched matrix product", "oneDNN"])
def test_set_sharing_linear_is_the_grouped_convolution_of_the_authors(pixels, bias):
    layer = SetSharingLinear(3, pixels, bias=bias)
    tiles = torch.randn(3, 5, pixels)
    grouped = F.conv2d(tiles.transpose(0, 1).reshape(5, -1, 1, 1), layer.weight, layer.bias, groups=3)
    expected = grouped.view(5, 3, pixels).transpose(0, 1)
    torch.testing.assert_close(layer(tiles), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sets", [1, 3])
def test_product_by_onednn_and_its_gradients(sets):
    tiles, matrices = torch.randn(sets, 4, 6, requires_grad=True), torch.randn(sets, 6, 6, requires_grad=True)
    out, expected = multiply_by_onednn(tiles, matrices), tiles @ matrices.mT
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(out, (tiles, matrices), upstream),
        torch.autograd.grad(expected, (tiles, matrices), upstream),
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@given(sets=small, rows=small, kernel=st.sampled_from([3, 5]), h=st.integers(1, 6), w=st.integers(1, 6))
def test_all_ways_to_convolve_are_one_convolution(method, sets, rows, kernel, h, w):
    conv = SetConv2d(sets, kernel, h, w).double()
    tiles, upstream = torch.randn(2, sets, rows, h * w, dtype=torch.float64)
    with patch.object(SetConv2d, "method", method):
        tiles = tiles[None].requires_grad_()
        out = conv(tiles)
    expected = F.conv2d(tiles[0].view(sets, rows, h, w).transpose(0, 1), conv.weight, padding=kernel // 2, groups=sets)
    expected = expected.transpose(0, 1).reshape_as(tiles)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    gradients = [torch.autograd.grad(y, (tiles, conv.weight), upstream[None]) for y in (out, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)


@given(sets=small, rows=small, kernel=st.sampled_from([1, 3, 5]), h=st.integers(1, 6), w=st.integers(1, 6))
def test_local_branch_is_a_depthwise_convolution_and_a_norm(sets, rows, kernel, h, w):
    branch = ConvNorm(SetConv2d(sets, kernel, h, w), dict(type="BN"))
    randomize(branch, torch.Generator().manual_seed(0)).double()
    reference = nn.BatchNorm2d(sets).double()
    reference.load_state_dict(branch.bn.state_dict())
    tiles = torch.randn(sets, rows, h * w, dtype=torch.float64)
    maps = tiles.view(sets, rows, h, w).transpose(0, 1)
    for mode in (False, True):
        branch.train(mode), reference.train(mode)
        if mode and rows * h * w == 1:
            continue  # a single value has no variance
        conv = F.conv2d(maps, branch.conv.weight, padding=kernel // 2, groups=sets)
        expected = reference(conv).transpose(0, 1).reshape_as(tiles)
        torch.testing.assert_close(branch(tiles[None])[0], expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(branch.bn.state_dict(), reference.state_dict(), rtol=1e-10, atol=1e-10)


@given(
    n=st.integers(1, 2),
    groups=small,
    sets=small,
    h=small,
    w=small,
    height=side,
    width=side,
    kernels=st.sets(st.sampled_from([1, 3, 5])),
    mode=modes,
)
def test_block_equals_its_definition_on_any_map(n, groups, sets, h, w, height, width, kernels, mode):
    channels = groups * sets
    block = RepMLPBlock(channels, h, w, sorted(kernels), min(2, channels), sets, pad_mode=mode)
    block = randomize(block, torch.Generator().manual_seed(1)).double().eval()
    x = torch.randn(n, channels, height, width, dtype=torch.float64)
    expected = naive_block(block, x)
    assert relative_error(block(x), expected) < 1e-12
    block.switch_to_deploy()
    assert not block.local_branches
    assert relative_error(block(x), expected) < 1e-10


def test_block_builds_into_any_network():
    network = nn.Sequential(nn.Conv2d(3, 8, 1), RepMLPBlock(8, 4, 6, (1, 3), num_sharesets=2), nn.ReLU())
    out = network(torch.randn(2, 3, 8, 12))
    out.mean().backward()
    assert out.shape == (2, 8, 8, 12)
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(channels=8, h=4, w=4, num_sharesets=3), "channels=8 is not divisible by num_sharesets=3"),
        (dict(channels=8, h=0, w=4), "h=0: expected a positive int"),
        (dict(channels=8, h=4, w=4, reparam_conv_kernels=(1, 2)), r"reparam_conv_kernels=\(1, 2\): .*odd"),
        (dict(channels=8, h=4, w=4, reparam_conv_kernels=(-1,)), "odd, positive"),
        (dict(channels=8, h=4, w=4, reparam_conv_kernels=(3, 3)), "distinct"),
        (dict(channels=8, h=4, w=4, pad_mode="edge"), "pad_mode='edge': expected one of zeros, shift"),
        (dict(channels=8, h=4, w=4, globalperceptron_ratio=9), "globalperceptron_ratio=9: expected an int from 1"),
        (dict(channels=8, h=4, w=4, norm_cfg=dict(type="GN", num_groups=1)), "GroupNorm.*BN"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        RepMLPBlock(**arguments)

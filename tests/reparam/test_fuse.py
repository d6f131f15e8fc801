# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmrepmlp.reparam import affine, conv_to_fc, fuse_after, fuse_before
from tests.helpers import randomize, relative_error

small = st.integers(1, 5)
extremes = st.sampled_from([0.1, 0.5, 1.5])  # variances down to 1e-6 and up to 1e6


def random_norm(channels: int, spread: float, affine: bool = True) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, affine=affine)
    if affine:
        randomize(norm, torch.Generator().manual_seed(0), spread)
    return norm.double().eval()


@given(channels=small, spread=extremes)
def test_scale_and_shift_of_a_norm(channels, spread):
    norm, x = random_norm(channels, spread), torch.randn(2, channels, 3, 4, dtype=torch.float64)
    scale, shift = (t.view(-1, 1, 1) for t in affine(norm))
    assert relative_error(x * scale + shift, norm(x)) < 1e-12


def test_scale_and_shift_without_affine_parameters():
    scale, shift = affine(random_norm(3, 0.5, affine=False))
    torch.testing.assert_close(scale, torch.full((3,), (1 + 1e-5) ** -0.5, dtype=torch.float64))
    assert torch.equal(shift, torch.zeros(3, dtype=torch.float64))


@given(inputs=small, outputs=small, kernel=small, bias=st.booleans(), spread=extremes)
def test_fuse_after_convolution(inputs, outputs, kernel, bias, spread):
    conv, norm = nn.Conv2d(inputs, outputs, kernel, bias=bias).double(), random_norm(outputs, spread)
    x = torch.randn(2, inputs, 6, 5, dtype=torch.float64)
    layer = fuse_after(affine(conv), affine(norm))
    assert relative_error(F.conv2d(x, *layer), norm(conv(x))) < 1e-10


@given(inputs=small, outputs=small, bias=st.booleans(), spread=extremes)
def test_fuse_before_pointwise_convolution(inputs, outputs, bias, spread):
    conv, norm = nn.Conv2d(inputs, outputs, 1, bias=bias).double(), random_norm(inputs, spread)
    x = torch.randn(2, inputs, 6, 5, dtype=torch.float64)
    layer = fuse_before(affine(norm), affine(conv))
    assert relative_error(F.conv2d(x, *layer), conv(norm(x))) < 1e-10


@given(sets=small, h=st.integers(1, 7), w=st.integers(1, 7), kernel=st.sampled_from([1, 3, 5, 7]))
def test_convolution_as_fully_connected_layer(sets, h, w, kernel):
    weight = torch.randn(sets, 1, kernel, kernel, dtype=torch.float64)
    x = torch.randn(3, sets, h, w, dtype=torch.float64)
    expected = F.conv2d(x, weight, padding=kernel // 2, groups=sets).flatten(2)
    actual = torch.einsum("sop,nsp->nso", conv_to_fc(weight, h, w), x.flatten(2))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@given(
    groups=small, inputs=small, outputs=small, h=st.integers(1, 5), w=st.integers(1, 5), k=st.sampled_from([1, 3, 5])
)
def test_grouped_convolution_as_fully_connected_layers(groups, inputs, outputs, h, w, k):
    weight = torch.randn(groups * outputs, inputs, k, k, dtype=torch.float64)
    x = torch.randn(3, groups * inputs, h, w, dtype=torch.float64)
    expected = F.conv2d(x, weight, padding=k // 2, groups=groups).view(3, groups, -1)
    matrices = conv_to_fc(weight, h, w, groups)
    assert matrices.shape == (groups, outputs * h * w, inputs * h * w)
    actual = torch.einsum("goi,ngi->ngo", matrices, x.view(3, groups, -1))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_a_norm_without_statistics_is_refused():
    with pytest.raises(ValueError, match="track_running_stats=False"):
        affine(nn.BatchNorm2d(3, track_running_stats=False))

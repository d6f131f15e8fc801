# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mmrepmlp.reparam import Addend, IdentityTap, LinearAddition, MiddleTap, TileTaps, conv_to_fc

SIDES = st.integers(1, 6)


@st.composite
def addends(draw: st.DrawFn) -> tuple[Addend, tuple[int, ...]]:
    """An addend, and the shape of the weight that it belongs to."""
    o, i, k = draw(SIDES), draw(SIDES), draw(st.sampled_from([1, 3, 5]))
    kind = draw(st.sampled_from([TileTaps, MiddleTap, IdentityTap]))
    if kind is TileTaps:
        h, w = draw(SIDES), draw(SIDES)
        return TileTaps(o, k, h, w), (o * h * w, h * w, 1, 1)
    if kind is MiddleTap:
        return MiddleTap(torch.randn(o, dtype=torch.float64), i), (o, i, k, k)
    return IdentityTap(o), (o, o, k, k)


def written(addend: Addend, kernel: Tensor, shape: tuple[int, ...]) -> Tensor:
    weight = torch.zeros(shape, dtype=torch.float64)
    addend.add_to(weight, kernel)
    return weight


@given(addends())
def test_gathering_is_the_adjoint_of_writing(drawn):
    addend, shape = drawn
    kernel, gradient = (torch.randn(size, dtype=torch.float64) for size in (addend.shape, shape))
    into_weight = (written(addend, kernel, shape) * gradient).sum()
    into_kernel = (kernel * addend.gather(gradient)).sum()
    torch.testing.assert_close(into_weight, into_kernel, rtol=1e-12, atol=1e-12)


@given(SIDES, st.sampled_from([1, 3, 5, 7]), SIDES, SIDES)
def test_taps_are_written_where_a_convolution_has_them(sets, k, h, w):
    kernel = torch.randn(sets, 1, k, k, dtype=torch.float64)
    matrices = written(TileTaps(sets, k, h, w), kernel, (sets, h * w, h * w))
    torch.testing.assert_close(matrices, conv_to_fc(kernel, h, w), rtol=0, atol=0)


@pytest.mark.parametrize(("k", "stride"), [(3, 1), (3, 2), (5, 1)])
def test_a_middle_tap_is_a_pointwise_convolution(k, stride):
    scale, kernel, x = (torch.randn(size, dtype=torch.float64) for size in [(4,), (4, 3), (2, 3, 8, 7)])
    weight = written(MiddleTap(scale, 3), kernel, (4, 3, k, k))
    expected = F.conv2d(x, kernel[..., None, None], stride=stride) * scale.view(-1, 1, 1)
    torch.testing.assert_close(F.conv2d(x, weight, stride=stride, padding=k // 2), expected, rtol=1e-12, atol=1e-12)


def test_an_identity_tap_is_a_scaled_shortcut():
    scale, x = (torch.randn(size, dtype=torch.float64) for size in [(4,), (2, 4, 8, 7)])
    weight = written(IdentityTap(4), scale, (4, 4, 3, 3))
    torch.testing.assert_close(F.conv2d(x, weight, padding=1), x * scale.view(-1, 1, 1), rtol=1e-12, atol=1e-12)


def test_the_transform_is_what_autograd_makes_of_the_sum():
    scale = torch.randn(5, 1, 1, 1, dtype=torch.float64)
    addition = LinearAddition(scale, [MiddleTap(torch.randn(5, dtype=torch.float64), 5), IdentityTap(5)])
    gradient = torch.randn(5, 5, 3, 3, dtype=torch.float64)
    parts = [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in [(5, 5, 3, 3), (5, 5), (5,)]]
    gradients = torch.autograd.grad(addition.fuse(parts[0], parts[1:]), parts, gradient)
    moved = addition.fuse(gradients[0], gradients[1:])
    torch.testing.assert_close(addition.transform(gradient), moved, rtol=1e-12, atol=1e-12)

# SPDX-License-Identifier: Apache-2.0
"""ParallelBatchNorm2d is nn.BatchNorm2d, element by element."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmrepmlp.models import ParallelBatchNorm2d, RepMLPNet
from mmrepmlp.models.parallel_norm import MANY_CHANNELS
from tests.conftest import TINY

SETTINGS = [
    {},
    dict(momentum=None),
    dict(momentum=0.3, eps=1e-3),
    dict(affine=False),
    dict(track_running_stats=False),
    dict(affine=False, track_running_stats=False),
]


def pair(channels, dtype, **settings):
    """Both norms with the same random parameters and statistics."""
    reference = nn.BatchNorm2d(channels, **settings).to(dtype)
    for name, tensor in reference.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + (name == "running_var"))
    ours = ParallelBatchNorm2d(channels, **settings).to(dtype)
    ours.load_state_dict(reference.state_dict())
    return reference, ours


def results(norm, x, grad):
    """Output, gradients and statistics of two batches."""
    x = x.clone().requires_grad_()
    norm(x.detach() + 1)
    out = norm(x)
    gradients = torch.autograd.grad(out, [x, *norm.parameters()], grad)
    return [out, *gradients, *norm.buffers()]


def assert_same(actual, expected, tolerance):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * max(1, other.abs().max())


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 7), st.integers(2, 9)), seed=st.integers(0, 99)
)
def test_outputs_gradients_and_statistics_are_those_of_torch(settings, sizes, seed):
    torch.manual_seed(seed)
    x, grad = torch.randn(2, *sizes, dtype=torch.float64)
    x = 3 * x + 1
    norms = pair(sizes[1], torch.float64, **settings)
    single = [copy.deepcopy(norm).float() for norm in norms]
    expected, actual = (results(norm, x, grad) for norm in norms)
    assert_same(actual, expected, 1e-11)
    # Gradients of two values that nearly cancel are ill-conditioned: in float32 torch's own error is the measure.
    torchs, ours = ([tensor.double() for tensor in results(norm, x.float(), grad.float())] for norm in single)
    for one, other, exact in zip(ours, torchs, expected):
        scale = exact.abs().max().clamp(min=1)
        assert (one - exact).abs().max() <= 4 * (other - exact).abs().max() + 2e-6 * scale
    for norm in norms:
        norm.eval()
    assert_same([norms[1](x)], [norms[0](x)], 1e-11)


def test_statistics_of_half_precision_are_those_of_float32():
    torch.manual_seed(0)
    x = (torch.randn(4, 3, 16, 16) + 100).bfloat16()
    reference, ours = pair(3, torch.float32)
    out = ours(x)
    expected = reference(x.float())
    assert out.dtype == torch.bfloat16
    assert (out - expected).abs().max() < 2**-7 * expected.abs().max()
    assert_same([*ours.buffers()], [*reference.buffers()], 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == reference(x).dtype == torch.bfloat16


def test_gradients_in_half_precision_are_those_of_float32():
    torch.manual_seed(0)
    x, grad = torch.randn(2, 4, 3, 16, 16).bfloat16()
    reference, ours = pair(3, torch.float32)
    expected, actual = results(reference, x.float(), grad.float())[1:4], results(ours, x, grad)[1:4]
    assert [gradient.dtype for gradient in actual] == [torch.bfloat16, torch.float32, torch.float32]
    for one, other, tolerance in zip(actual, expected, (2**-8, 1e-5, 1e-5), strict=True):
        assert (one.float() - other).abs().max() <= tolerance * other.abs().max()


def test_many_channels_are_torch_s_own():
    reference, ours = pair(MANY_CHANNELS, torch.float32)
    x, grad = torch.randn(2, 2, MANY_CHANNELS, 3, 4)
    assert_same(results(ours, x, grad), results(reference, x, grad), 0)


def test_large_means_do_not_cancel():
    torch.manual_seed(0)
    x = torch.randn(8, 1, 64, 64) + 1e4
    reference, ours = pair(1, torch.float32)
    out = ours(x)
    assert (out - reference.double()(x.double())).abs().max() < 2e-3  # x itself is rounded to 1e-3


def test_what_torch_refuses_is_refused():
    norm = ParallelBatchNorm2d(3)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        norm(torch.randn(1, 3, 1, 1))
    with pytest.raises(ValueError, match="expected 4D input"):
        norm(torch.randn(2, 3, 4))
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    (first,) = torch.autograd.grad(norm(x).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("with_cp", [False, True])
def test_a_network_trains_the_same(with_cp):
    torch.manual_seed(0)
    reference = RepMLPNet(TINY, img_size=64, with_cp=with_cp).double()
    network = RepMLPNet(TINY, img_size=64, with_cp=with_cp, norm_cfg=dict(type="mmrepmlp.ParallelBatchNorm2d")).double()
    network.load_state_dict(reference.state_dict())
    assert sum(isinstance(module, ParallelBatchNorm2d) for module in network.modules()) > 10
    x = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    for model in (reference, network):
        model(x)[-1].pow(2).mean().backward()
    for name, parameter in reference.named_parameters():
        other = network.get_parameter(name)
        assert (parameter.grad - other.grad).abs().max() <= 1e-10 * parameter.grad.abs().max().clamp(min=1e-6), name
    assert_same([*network.buffers()], [*reference.buffers()], 1e-12)
    deployed = copy.deepcopy(network.eval())
    deployed.switch_to_deploy()
    before, after = network(x)[-1], deployed(x)[-1]
    assert (before - after).abs().max() < 1e-10 * before.abs().max()


@pytest.mark.slow
def test_compilers_see_torch_s_own():
    torch.manual_seed(0)
    reference, ours = pair(3, torch.float32)
    x = torch.randn(2, 3, 8, 8)
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), reference(x))

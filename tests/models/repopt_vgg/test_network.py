# SPDX-License-Identifier: Apache-2.0
"""RepOptVGG against its blocks written out, and the names and numbers that were published."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from mmrepmlp.models import RepOptVGG
from tests.helpers import relative_error

SMALL = dict(depths=[2, 3], channels=[6, 10])
NETWORK = dict(arch=SMALL, strides=(2, 1, 2), out_indices=(0, 1))
# As published, in millions, with a head of 1000 classes.
PARAMETERS = {"B1": 51.8, "B2": 80.3, "L1": 76.0, "L2": 118.1}
OPTIMIZERS = {
    "sgd": dict(type="SGD", lr=0.05, weight_decay=0.05),
    "nesterov": dict(type="SGD", lr=0.02, momentum=0.9, nesterov=True, weight_decay=0.05),
    "adamw": dict(type="AdamW", lr=2e-3, weight_decay=0.05),
}
KINDS = dict(SGD=torch.optim.SGD, AdamW=torch.optim.AdamW)


class ConstantScales(nn.Module):
    """A block that holds what a convolution with scales stands for, in place of the convolution."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.scales, self.stride = block.scales, block.conv.stride
        o, i = block.conv.weight.shape[:2]
        self.kernel = nn.Parameter(torch.randn(o, i, 3, 3).to(block.conv.weight) / 8)
        self.pointwise = nn.Parameter(torch.randn(o, i, 1, 1).to(block.conv.weight) / 4)
        if "identity" in self.scales:
            self.identity = nn.Parameter(self.scales["identity"].clone())

    def forward(self, x: Tensor) -> Tensor:
        t, s = (self.scales[name].view(-1, 1, 1) for name in ("1x1", "conv"))
        out = s * F.conv2d(x, self.kernel, stride=self.stride, padding=1)
        out = out + t * F.conv2d(x, self.pointwise, stride=self.stride)
        return out + self.identity.view(-1, 1, 1) * x if hasattr(self, "identity") else out

    def merged(self) -> Tensor:
        t, s = (self.scales[name].view(-1, 1, 1, 1) for name in ("1x1", "conv"))
        merged = s * self.kernel + F.pad(t * self.pointwise, [1] * 4)
        if hasattr(self, "identity"):
            merged = merged + F.pad(torch.diag(self.identity)[..., None, None], [1] * 4)
        return merged


def save_scales(path, network: RepOptVGG, key: str | None = None) -> str:
    state = network.state_dict()
    torch.save({key: state} if key else state, path)
    return str(path)


def searched(dtype: torch.dtype = torch.float64) -> RepOptVGG:
    """A hyper-search form whose scales have moved."""
    network = RepOptVGG(**NETWORK, form="hyper_search").to(dtype)
    for name, parameter in network.named_parameters():
        if "scale_" in name:
            parameter.data.uniform_(0.3, 1.5)
    return network


def build_optimizer(network: nn.Module, optimizer: dict, scales: str) -> torch.optim.Optimizer:
    cfg = dict(type="OptimWrapper", constructor="mmrepmlp.RepOptimizerConstructor", optimizer=optimizer)
    return build_optim_wrapper(network, {**cfg, "paramwise_cfg": dict(scales=scales)}).optimizer


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    dtype = next(network.parameters()).dtype
    for _ in range(steps):
        images, target = (
            torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
            for size in [(4, 3, 16, 12), (4, 10, 4, 3)]
        )
        optimizer.zero_grad()
        F.mse_loss(network(images)[-1], target).backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_it_trains_as_constant_scales_do(name, dtype, tolerance, tmp_path):
    network = RepOptVGG(**NETWORK).to(dtype)
    optimizer = build_optimizer(network, OPTIMIZERS[name], save_scales(tmp_path / "scales.pth", searched(dtype)))
    structural = copy.deepcopy(network)
    for block, twin in zip(structural.blocks.values(), network.blocks.values()):
        block.conv = ConstantScales(block)
        twin.conv.weight.data = block.conv.merged().detach()
    settings = dict(OPTIMIZERS[name])
    start = {path: block.conv.weight.detach().clone() for path, block in network.blocks.items()}
    train(structural, KINDS[settings.pop("type")](structural.parameters(), **settings), 50)
    train(network, optimizer, 50)
    for path, block in network.blocks.items():
        expected = structural.get_submodule(path).conv.merged().detach()
        assert relative_error(block.conv.weight.detach(), expected) < tolerance
        assert relative_error(start[path], expected) > 0.01  # they did move


def test_resuming_changes_nothing(tmp_path):
    scales = save_scales(tmp_path / "scales.pth", searched(), "state_dict")
    whole = RepOptVGG(**NETWORK).double()
    optimizer = build_optimizer(whole, OPTIMIZERS["nesterov"], scales)
    train(whole, optimizer, 5)
    torch.save((whole.state_dict(), optimizer.state_dict()), tmp_path / "half.pth")
    weights, state = torch.load(tmp_path / "half.pth", weights_only=True)
    resumed = RepOptVGG(**NETWORK).double()
    resumed.load_state_dict(weights)
    again = build_optimizer(resumed, OPTIMIZERS["nesterov"], scales)  # leaves the weights of a trained network alone
    again.load_state_dict(state)
    train(whole, optimizer, 5)
    train(resumed, again, 5)
    for path, expected in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[path], expected, rtol=0, atol=0, msg=path)


def test_an_untrained_network_starts_from_the_sum(tmp_path):
    search = searched()
    torch.manual_seed(5)
    network = RepOptVGG(**NETWORK).double()
    kernels = {path: block.conv.weight.detach().clone() for path, block in network.blocks.items()}
    build_optimizer(network, OPTIMIZERS["sgd"], save_scales(tmp_path / "scales.pth", search, "state_dict"))
    for path, block in network.blocks.items():
        found = search.get_submodule(path)
        rest = block.conv.weight.detach() - kernels[path] * found.scale_conv.weight.detach().view(-1, 1, 1, 1)
        middle = rest[:, :, 1, 1].clone()
        rest[:, :, 1, 1] = 0
        assert rest.abs().max() < 1e-12
        if block.has_shortcut:
            middle -= torch.diag(found.scale_identity.weight.detach())
        bound = found.scale_1x1.weight.detach()[:, None] / block.conv.in_channels**0.5
        assert (middle.abs() <= bound * (1 + 1e-6)).all() and middle.abs().max() > 0.5 * bound.max() / 2


@pytest.mark.parametrize("arch", PARAMETERS)
def test_numbers_of_parameters(arch):
    with torch.device("meta"):
        network = RepOptVGG(arch)
    total = sum(parameter.numel() for parameter in network.parameters()) + 1000 * (network.channels[-1] + 1)
    assert total / 1e6 == pytest.approx(PARAMETERS[arch], abs=0.06)


def test_the_authors_names():
    target, search = RepOptVGG("B1").state_dict(), RepOptVGG("B1", form="hyper_search").state_dict()
    assert {
        "stage0.conv.weight",
        "stage1.0.conv.weight",
        "stage3.15.bn.running_var",
        "stage4.0.bn.bias",
    } <= target.keys()
    own = {"conv.weight", "conv_1x1.weight", "scale_conv.weight", "scale_1x1.weight", "scale_identity.weight"}
    assert {f"stage2.3.{name}" for name in own} <= search.keys()
    assert not {"stage0.scale_identity.weight", "stage2.0.scale_identity.weight"} & search.keys()
    torch.testing.assert_close(search["stage3.8.scale_1x1.weight"], torch.full((512,), 0.5))
    assert torch.equal(search["stage3.0.scale_conv.weight"], torch.ones(512))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(arch="B7"), "arch='B7': expected one of B1, B2, L1, L2, or a dict with the lists depths and channels"),
        (dict(arch=dict(depths=[1], channels=[2, 3])), r"channels=\[2, 3\]: expected 1 positive ints"),
        (dict(form="csla"), "form='csla': expected one of target, hyper_search"),
        (dict(strides=(2, 2)), r"strides=\(2, 2\): expected 3 positive ints"),
        (dict(frozen_stages=3), "frozen_stages=3: expected an int from -1 to 2"),
        (dict(out_indices=(2,)), r"out_indices=\(2,\): expected ints from -2 to 1"),
    ],
)
def test_wrong_arguments_are_said(changes, message):
    with pytest.raises(ValueError, match=message):
        RepOptVGG(**{**NETWORK, **changes})


def test_wrong_scales_are_said(tmp_path):
    other = RepOptVGG({**SMALL, "channels": [6, 12]}, form="hyper_search", strides=(2, 1, 2), out_indices=1)
    wrong = save_scales(tmp_path / "other.pth", other)
    with pytest.raises(ValueError, match=r"another network: stage2.0 has {.*\(12,\)}, expected {.*\(10,\)}"):
        build_optimizer(RepOptVGG(**NETWORK), OPTIMIZERS["sgd"], wrong)
    target = save_scales(tmp_path / "target.pth", RepOptVGG(**NETWORK))
    with pytest.raises(
        ValueError, match=r"target.pth has no scales: expected names such as stage1.0.scale_conv.weight"
    ):
        build_optimizer(RepOptVGG(**NETWORK), OPTIMIZERS["sgd"], target)
    right = save_scales(tmp_path / "right.pth", searched())
    with pytest.raises(ValueError, match="is in hyper_search form. Scales are for form='target'"):
        build_optimizer(searched(), OPTIMIZERS["sgd"], right)
    with pytest.raises(FileNotFoundError, match="none.pth"):
        build_optimizer(RepOptVGG(**NETWORK), OPTIMIZERS["sgd"], str(tmp_path / "none.pth"))
    with pytest.raises(
        ValueError, match="RepOptVGG has nothing to re-parameterize. .* RepOptVGG, with the scales of its"
    ):
        build_optim_wrapper(
            RepOptVGG(**NETWORK),
            dict(type="OptimWrapper", constructor="mmrepmlp.RepOptimizerConstructor", optimizer=OPTIMIZERS["sgd"]),
        )


def test_initializers_that_run_behind_the_optimizer_keep_the_sums(tmp_path):
    # As MMEngine's runner does; a second initializer does not add them twice.
    constants = [dict(type="Constant", layer="Conv2d", val=0.0), dict(type="Constant", layer="_BatchNorm", val=0.5)]
    network, search = RepOptVGG(**NETWORK, init_cfg=constants), searched(torch.float32)
    build_optimizer(network, OPTIMIZERS["sgd"], save_scales(tmp_path / "scales.pth", search))
    network.init_weights()
    for name, block in network.blocks.items():
        weight, scales = block.conv.weight.detach().clone(), search.blocks[name]
        pointwise = weight[:, :, 1, 1].clone()
        weight[:, :, 1, 1] = 0
        assert not weight.any() and block.bn.weight.eq(0.5).all(), name
        if block.has_shortcut:
            pointwise.diagonal().sub_(scales.scale_identity.weight)
        initial = pointwise / scales.scale_1x1.weight[:, None]
        bound = block.conv.in_channels**-0.5  # torch's own
        assert initial.any() and initial.abs().max() <= bound + 1e-6, name

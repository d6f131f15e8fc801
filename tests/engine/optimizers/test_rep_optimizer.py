# SPDX-License-Identifier: Apache-2.0
"""Gradient re-parameterization against training the sums that it stands for."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import Tensor, nn

from mmrepmlp.models import RepMLPNet
from mmrepmlp.reparam import conv_to_fc

ARCH = dict(channels=[8, 16], depths=[1, 2], sharesets_nums=[1, 4])
NETWORK = dict(arch=ARCH, img_size=(24, 16), out_indices=(1,), fc3_norm_init=0.7)
OPTIMIZERS = {
    "sgd": dict(type="SGD", lr=0.02, weight_decay=0.05),
    "momentum": dict(type="SGD", lr=0.01, momentum=0.9, dampening=0.1, weight_decay=0.05),
    "nesterov": dict(type="SGD", lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.05),
    "adamw": dict(type="AdamW", lr=2e-3, weight_decay=0.05),
    "amsgrad": dict(type="AdamW", lr=2e-3, weight_decay=0.05, amsgrad=True, betas=(0.8, 0.95)),
}
KINDS = dict(SGD=torch.optim.SGD, AdamW=torch.optim.AdamW)
STEPS = 50


class Sum(nn.Module):
    """A fully connected layer, times a constant, and local branches, in place of their sum."""

    def __init__(self, block: nn.Module, scale: float) -> None:
        super().__init__()
        self.scale, self.h, self.w = scale, block.h, block.w
        self.matrices = nn.Parameter(torch.randn(block.num_sharesets, block.h * block.w, block.h * block.w) / 8)
        sizes = block.reparam_conv_kernels
        self.kernels = nn.ParameterList(torch.randn(block.num_sharesets, 1, size, size) / 4 for size in sizes)

    def forward(self, tiles: Tensor) -> Tensor:
        out = self.scale * torch.einsum("smi,soi->smo", tiles, self.matrices)
        maps = tiles.unflatten(2, (self.h, self.w)).transpose(0, 1)
        for kernel in self.kernels:
            local = F.conv2d(maps, kernel, padding=kernel.size(-1) // 2, groups=len(kernel))
            out = out + local.transpose(0, 1).flatten(2)
        return out

    def merged(self) -> Tensor:
        kernels = (conv_to_fc(kernel, self.h, self.w).to(kernel) for kernel in self.kernels)
        return self.scale * self.matrices + sum(kernels)


def blocks(network: RepMLPNet) -> list[nn.Module]:
    return [unit.repmlp_block for stage in network.stages for unit in stage]


def build_pair(dtype: torch.dtype) -> tuple[RepMLPNet, RepMLPNet]:
    """A network that holds the sums and one that holds their merged weights."""
    merged = RepMLPNet(**NETWORK, gradient_reparam=True).to(dtype)
    structural = copy.deepcopy(merged)
    for block, twin in zip(blocks(structural), blocks(merged)):
        block.fc3 = Sum(block, NETWORK["fc3_norm_init"]).to(dtype)
        twin.fc3.weight.data = block.fc3.merged().detach().view_as(twin.fc3.weight)
    return structural, merged


def plain(network: nn.Module, settings: dict) -> torch.optim.Optimizer:
    settings = dict(settings)
    return KINDS[settings.pop("type")](network.parameters(), **settings)


def wrapper(network: nn.Module, optimizer: dict, **settings: object) -> OptimWrapper:
    cfg = dict(type="OptimWrapper", constructor="mmrepmlp.RepOptimizerConstructor", optimizer=optimizer)
    return build_optim_wrapper(network, {**cfg, **settings})


def reparameterized(network: nn.Module, settings: dict) -> torch.optim.Optimizer:
    return wrapper(network, settings).optimizer


def batches(dtype: torch.dtype, steps: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    """Images and targets."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, 3, 24, 16), (4, 16, 3, 2)]
    return [
        tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
        for _ in range(steps)
    ]


def train(network: nn.Module, optimizer: torch.optim.Optimizer, data: list[tuple[Tensor, Tensor]]) -> None:
    for images, target in data:
        optimizer.zero_grad()
        F.mse_loss(network(images)[0], target).backward()
        optimizer.step()


def difference(structural: RepMLPNet, merged: RepMLPNet) -> float:
    """The largest of any merged weight, relative."""
    pairs = [(b.fc3.merged().flatten(), t.fc3.weight.flatten()) for b, t in zip(blocks(structural), blocks(merged))]
    return max(((a - e).abs().max() / e.abs().max()).item() for e, a in pairs)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float64) for name in OPTIMIZERS), ("nesterov", torch.float32), ("amsgrad", torch.float32)],
)
def test_merged_weights_move_as_the_sums_do(name, dtype):
    structural, merged = build_pair(dtype)
    start = copy.deepcopy(merged)
    train(structural, plain(structural, OPTIMIZERS[name]), batches(dtype))
    train(merged, reparameterized(merged, OPTIMIZERS[name]), batches(dtype))
    assert difference(structural, merged) < (1e-12 if dtype == torch.float64 else 1e-5)
    assert difference(structural, start) > 0.01  # they did move
    if dtype == torch.float64:  # AdamW makes much of the rounding of gradients that are nearly zero
        for (path, expected), actual in zip(structural.named_buffers(), merged.buffers()):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10, msg=path)


@pytest.mark.parametrize("name", ["nesterov", "adamw"])
def test_a_plain_optimizer_moves_them_elsewhere(name):
    structural, merged = build_pair(torch.float64)
    train(structural, plain(structural, OPTIMIZERS[name]), batches(torch.float64))
    train(merged, plain(merged, OPTIMIZERS[name]), batches(torch.float64))
    assert difference(structural, merged) > 1e-3


def through_a_file(network: nn.Module, optimizer: torch.optim.Optimizer, settings: dict) -> tuple:
    """Save both as plain data, and load them into new ones."""
    file = io.BytesIO()
    torch.save((network.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed = RepMLPNet(**NETWORK, gradient_reparam=True).double()
    resumed.load_state_dict(weights)
    fresh = reparameterized(resumed, settings)
    fresh.load_state_dict(state)
    return resumed, fresh


INTERRUPTIONS: dict[str, Callable] = {
    "resume": through_a_file,
    "deepcopy": lambda network, optimizer, _: copy.deepcopy((network, optimizer)),
    "reload": lambda network, optimizer, _: (network, optimizer.load_state_dict(optimizer.state_dict()) or optimizer),
}


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
@pytest.mark.parametrize("name", ["nesterov", "adamw"])
def test_an_interruption_changes_nothing(name, interruption):
    data, settings = batches(torch.float64, 20), OPTIMIZERS[name]
    _, network = build_pair(torch.float64)
    whole = copy.deepcopy(network)
    train(whole, reparameterized(whole, settings), data)
    optimizer = reparameterized(network, settings)
    train(network, optimizer, data[:10])
    network, optimizer = INTERRUPTIONS[interruption](network, optimizer, settings)
    train(network, optimizer, data[10:])
    for (path, expected), actual in zip(whole.state_dict().items(), network.state_dict().values()):
        torch.testing.assert_close(actual, expected, rtol=0, atol=0, msg=path)


@pytest.mark.parametrize("name", ["nesterov", "adamw"])
def test_settings_of_parameters_and_accumulation_hold(name):
    """Rates and decays by name, a schedule, a weight without a gradient, several batches a step."""
    structural, merged = build_pair(torch.float64)
    settings = OPTIMIZERS[name]
    custom = {"stages.0": dict(lr_mult=0.5, decay_mult=3.0)}
    wrapped = wrapper(merged, settings, paramwise_cfg=dict(custom_keys=custom), accumulative_counts=2)
    groups = [
        dict(
            params=[p],
            lr=settings["lr"] * (0.5 if "stages.0" in n else 1.0),
            weight_decay=0.15 if "stages.0" in n else 0.05,
        )
        for n, p in structural.named_parameters()
    ]
    kind = dict(settings)
    optimizer = KINDS[kind.pop("type")](groups, **kind)
    for step, (images, target) in enumerate(batches(torch.float64, 12)):
        for group in (*optimizer.param_groups, *wrapped.optimizer.param_groups):
            group["lr"] *= 0.9
        with wrapped.optim_context(merged):
            wrapped.update_params(F.mse_loss(merged(images)[0], target))
        (F.mse_loss(structural(images)[0], target) / 2).backward()
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()
    assert difference(structural, merged) < 1e-12


def test_gradients_are_given_back():
    _, merged = build_pair(torch.float64)
    for name in ("nesterov", "adamw"):
        optimizer = reparameterized(merged, OPTIMIZERS[name])
        optimizer.zero_grad()
        merged(torch.randn(2, 3, 24, 16).double())[0].square().mean().backward()
        before = [parameter.grad for parameter in merged.parameters()]
        values = [gradient.clone() for gradient in before]
        optimizer.step()
        for parameter, gradient, value in zip(merged.parameters(), before, values):
            assert parameter.grad is gradient and torch.equal(gradient, value)
        optimizer.zero_grad()
        optimizer.step()  # without gradients


@pytest.mark.parametrize("name", ["nesterov", "adamw"])
def test_a_distributed_model_trains_alike(name, alone):
    _, network = build_pair(torch.float64)
    wrapped = MMDistributedDataParallel(copy.deepcopy(network))
    train(network, reparameterized(network, OPTIMIZERS[name]), batches(torch.float64, 5))
    train(wrapped, reparameterized(wrapped, OPTIMIZERS[name]), batches(torch.float64, 5))
    for (path, expected), actual in zip(network.named_parameters(), wrapped.parameters()):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, msg=path)


def test_frozen_stages_have_nothing_to_move():
    network = RepMLPNet(**NETWORK, gradient_reparam=True, frozen_stages=1)
    optimizer = reparameterized(network, OPTIMIZERS["adamw"])
    assert [weight.name for weight in optimizer.weights] == [f"stages.1.{i}.repmlp_block.fc3.weight" for i in (0, 1)]
    for weight in optimizer.weights:
        assert weight.parameter(optimizer) is network.get_parameter(weight.name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(clip_grad=dict(max_norm=5.0)), "clip_grad=.*5.0.*: clipping depends on .* Leave clip_grad out"),
        (dict(optimizer=dict(type="Adam", lr=1e-3)), "optimizer type=Adam: expected SGD or AdamW"),
        (dict(optimizer=dict(type="AdamW", lr=1e-3, fused=True)), "AdamW with fused=True cannot .* Leave fused out"),
        (dict(paramwise_cfg=dict(scales="b1.pth")), "scales='b1.pth', but RepMLPNet has no RepOptVGG to take them"),
    ],
)
def test_what_cannot_be_taken_apart_is_said(changes, message):
    settings = dict(optimizer=OPTIMIZERS["adamw"]) | changes
    with pytest.raises(ValueError, match=message):
        wrapper(RepMLPNet(**NETWORK, gradient_reparam=True), **settings)


def test_nothing_to_reparameterize_is_said():
    with pytest.raises(ValueError, match="RepMLPNet has nothing to re-parameterize. Set gradient_reparam=True"):
        wrapper(RepMLPNet(**NETWORK), OPTIMIZERS["adamw"])
    _, merged = build_pair(torch.float32)
    with pytest.raises(ValueError, match="before the step. Compute them before"):
        reparameterized(merged, OPTIMIZERS["sgd"]).step(lambda: 0.0)

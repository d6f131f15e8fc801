# SPDX-License-Identifier: Apache-2.0
"""Every module of the network is really called, in every form and mode, and what it returned is left alone."""

import copy
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from timm.models._features import FeatureHooks
from torch import nn
from torch.profiler import ProfilerActivity, profile

from mmrepmlp import switch_to_deploy
from mmrepmlp.models import RepMLPNet
from mmrepmlp.models.repmlpnet import speed
from mmrepmlp.models.repmlpnet.block import GlobalPerceptron
from mmrepmlp.models.repmlpnet.local import SetConv2d
from mmrepmlp.models.repmlpnet.tiling import PAD_MODES
from tests.conftest import TINY
from tests.helpers import randomize, relative_error


def tiny(**arguments) -> RepMLPNet:
    model = RepMLPNet(TINY, 64, **{"out_indices": (0, 1, 2, 3), **arguments})
    return randomize(model, torch.Generator().manual_seed(0), 0.2).eval()


def forms(model: nn.Module) -> dict[str, nn.Module]:
    return {"training form": model, "deploy form": switch_to_deploy(copy.deepcopy(model))}


@pytest.mark.parametrize("form", ["training form", "deploy form"])
@pytest.mark.parametrize("mode", ["eval", "eval, no gradients", "train", "recomputed"])
@pytest.mark.parametrize("elements", [1, speed.HIDDEN_ELEMENTS])
def test_every_module_is_called_once_a_pass(monkeypatch, form, mode, elements):
    monkeypatch.setattr(speed, "HIDDEN_ELEMENTS", elements)  # 1: every map would be run in slices
    model = forms(tiny(drop_path_rate=0.2, with_cp=mode == "recomputed"))[form].train(mode in ("train", "recomputed"))
    calls, shapes = Counter(), {}

    def count(name: str, inputs: tuple) -> None:
        calls[name] += 1
        shapes[name] = inputs[0].shape

    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: count(name, i))
    with torch.no_grad() if mode == "eval, no gradients" else nullcontext():
        model(torch.randn(2, 3, 72, 96))
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) or name.endswith(".relu"):
            continue  # a list cannot be called
        if list(module.children()) or list(module.parameters(recurse=False)) or name.endswith("drop_path"):
            assert calls[name] == (2 if name.endswith("drop_path") else 1), name
            assert name.endswith("fc3") or ".repconv" in name or "fc3_bn" in name or shapes[name][0] == 2, name


@pytest.mark.parametrize("form", ["training form", "deploy form"])
@pytest.mark.parametrize("gradients", [False, True])
def test_what_hooks_keep_stays_what_it_was(form, gradients):
    model, kept = forms(tiny())[form], []

    def keep(output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        kept.extend((tensor, tensor.clone()) for tensor in (output if isinstance(output, tuple) else (output,)))

    for name, module in model.named_modules():
        # A ReLU works in place right behind these, which is the habit of the field.
        if not name.startswith(("patch_embed.", "downsample_layers.")) and not name.endswith("gp.conv1.conv"):
            module.register_forward_hook(lambda m, i, o: keep(o))
    with torch.set_grad_enabled(gradients):
        model(torch.randn(3, 3, 72, 96))
    assert len(kept) > 60 and all(torch.equal(tensor, copied) for tensor, copied in kept)


@torch.no_grad()
@pytest.mark.parametrize("form", ["training form", "deploy form"])
def test_outputs_are_not_overwritten_where_nobody_hooks(form):
    """A module that stores its output by itself, which no look at hooks would find."""

    class Recorder:
        def __init__(self, module: nn.Module) -> None:
            self.forward, self.kept = module.forward, []

        def __call__(self, x: torch.Tensor, *arguments, **options) -> torch.Tensor:
            out = self.forward(x, *arguments, **options)
            self.kept.append((out, out.clone(), x, x.clone()))
            return out

    model, recorders = forms(tiny())[form], []
    for unit in [unit for stage in model.stages for unit in stage]:
        for name in ("norm1", "repmlp_block", "norm2", "ffn_block"):
            recorders.append(Recorder(getattr(unit, name)))
    expected = model(x := torch.randn(3, 3, 72, 96))
    for i, unit in enumerate(unit for stage in model.stages for unit in stage):
        for name, recorder in zip(("norm1", "repmlp_block", "norm2", "ffn_block"), recorders[4 * i :]):
            getattr(unit, name).forward = recorder
    for actual, out in zip(model(x), expected):
        assert torch.equal(actual, out)
    for recorder in recorders:
        for out, copied, given, given_copy in recorder.kept:
            assert torch.equal(out, copied) and torch.equal(given, given_copy)


@pytest.mark.parametrize("form", ["training form", "deploy form"])
@torch.no_grad()
def test_the_plain_formula(monkeypatch, form):
    monkeypatch.setattr(speed, "LARGE_TILE", 1)
    monkeypatch.setattr(speed, "HIDDEN_ELEMENTS", 1)
    model, x = forms(tiny())[form], torch.randn(2, 3, 72, 96)

    def run() -> tuple[tuple[torch.Tensor, ...], Counter]:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            outputs = model(x)
        return outputs, Counter(event.name for event in profiler.events())

    outputs, operators = run()
    monkeypatch.setenv("MMREPMLP_PLAIN", "1")
    expected, plain = run()
    for actual, wanted in zip(outputs, expected, strict=True):
        assert relative_error(actual, wanted) < 1e-5
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    gates = 2 * sum(isinstance(module, GlobalPerceptron) for module in model.modules())
    kernels_of_one = sum(isinstance(m, SetConv2d) and m.kernel_size == (1, 1) for m in model.modules())
    assert plain["aten::conv2d"] == convolutions - gates - kernels_of_one < operators["aten::conv2d"]
    assert plain["aten::addcmul"] == 0 < operators["aten::addcmul"]


@pytest.mark.parametrize("form", ["training form", "deploy form"])
@pytest.mark.parametrize("layer", ["stages.3", "stages.2.1.repmlp_block", "stages.1.0.repmlp_block.fc3"])
def test_grad_cam(form, layer):
    model, seen = forms(tiny())[form], {}
    target = model.get_submodule(layer)
    target.register_forward_hook(lambda m, i, o: seen.update(activation=o))
    target.register_full_backward_hook(lambda m, i, o: seen.update(gradient=o[0]))
    x = torch.randn(1, 3, 64, 96, requires_grad=True)
    model(x)[-1].mean((2, 3))[0, 5].backward()
    assert seen["gradient"].shape == seen["activation"].shape and seen["gradient"].abs().sum() > 0
    step = 1e-3 * seen["gradient"] / seen["gradient"].norm()
    # The gradient is that of the activation: a step along it moves the score by its length.
    shifted = copy.deepcopy(model)
    shifted.get_submodule(layer)._forward_hooks.clear()
    shifted.get_submodule(layer).register_forward_hook(lambda m, i, o: o + step)
    gain = (shifted.double()(x.double())[-1] - model.double()(x.double())[-1]).mean((2, 3))[0, 5]
    assert gain.item() == pytest.approx(1e-3 * seen["gradient"].norm().item(), rel=0.05)


@pytest.mark.parametrize("form", ["training form", "deploy form"])
@torch.no_grad()
def test_feature_hooks_of_timm(form):
    model, x = forms(tiny())[form], torch.randn(2, 3, 72, 96)
    expected = model(x)
    hooks = FeatureHooks([dict(module=f"stages.{i}", type="forward") for i in range(4)], model.named_modules())
    model(x)
    for actual, out in zip(list(hooks.get_output(x.device).values())[:3], expected[:3], strict=True):
        assert torch.equal(actual, out)


@pytest.mark.parametrize("norm", ["norm1", "norm2", "final_norm"])
def test_frozen_norms_stay_frozen(norm):
    model = tiny()
    for name, module in model.named_modules():
        if name.endswith(norm):
            module.requires_grad_(False)
    model.switch_to_deploy()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (f"{norm}." not in f".{name}"), name


@pytest.mark.parametrize(("form", "pad_mode"), zip(["training form", "deploy form"], PAD_MODES, strict=True))
@pytest.mark.parametrize("size", [(24, 40), (5, 70), (64, 33)])
def test_images_smaller_than_a_tile_can_be_traced(form, pad_mode, size):
    model = forms(tiny(pad_mode=pad_mode))[form]
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        for actual, expected in zip(torch.jit.trace(model, x)(x), model(x)):
            assert relative_error(actual, expected) < 1e-5
    assert get_model_complexity_info(model, (3, *size), show_table=False, show_arch=False)["flops"] > 0

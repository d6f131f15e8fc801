# SPDX-License-Identifier: Apache-2.0
"""The configs of RepOpt-VGG and those that train a RepMLPNet in its deploy structure."""

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.structures import DataSample
from torch import nn

import mmrepmlp
from mmrepmlp.engine.optimizers.reparameterized import GradientReparameterization
from mmrepmlp.models import RepMLPBlock, RepOptVGG
from tests.helpers import relative_error

CONFIGS = Path(__file__).parents[2] / "configs"
ARCHS = ("b1", "b2", "l1", "l2")
SLIM = dict(depths=[1, 2, 1, 1], channels=[4, 6, 8, 12])
EXPERIMENTS = sorted((CONFIGS / "experimental").glob("*.py"))


def target_of(arch: str) -> Config:
    return Config.fromfile(CONFIGS / f"repopt_vgg/repopt-vgg-{arch}_8xb32_in1k.py")


def search_of(arch: str) -> Config:
    return Config.fromfile(CONFIGS / f"repopt_vgg/repopt-vgg-{arch}_hyper-search_8xb16_cifar100.py")


def build(cfg: Config) -> nn.Module:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build({"data_preprocessor": cfg.get("data_preprocessor"), **cfg.model})


@pytest.mark.parametrize("arch", ARCHS)
def test_the_recipes_of_repopt_vgg(arch):
    cfg, search = target_of(arch), search_of(arch)
    for part in (cfg, search):
        assert part.model.backbone.arch == arch.upper() and part.model.backbone.type == "mmrepmlp.RepOptVGG"
        with torch.device("meta"):
            assert part.model.head.in_channels == RepOptVGG(arch).channels[-1]
        optimizer = part.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ("SGD", 0.1, 0.9, 4e-5)
        warm_up, cosine = part.param_scheduler
        assert cosine.end == part.train_cfg.max_epochs and warm_up.end == cosine.begin
    assert (cfg.train_cfg.max_epochs, cfg.param_scheduler[0].end) == (120, 5)
    assert (search.train_cfg.max_epochs, search.param_scheduler[0].end) == (240, 10)
    assert cfg.optim_wrapper.constructor == "mmrepmlp.RepOptimizerConstructor" and "clip_grad" not in cfg.optim_wrapper
    assert cfg.optim_wrapper.paramwise_cfg.scales == f"work_dirs/{Path(search.filename).stem}/epoch_240.pth"
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size == 256
    assert search.auto_scale_lr.base_batch_size == 8 * search.train_dataloader.batch_size == 128


@pytest.mark.parametrize("arch", ["b1", "l2"])
def test_from_the_search_to_the_deploy_form(arch, tmp_path):
    cfg, search = target_of(arch), search_of(arch)
    for part in (cfg, search):
        part.model.backbone.arch, part.model.head.in_channels = SLIM, SLIM["channels"][-1]
    model = build(search)
    step(model, build_optim_wrapper(model, search.optim_wrapper), 32, 100)
    torch.save(dict(meta={}, state_dict=model.state_dict()), tmp_path / "epoch_240.pth")
    cfg.optim_wrapper.paramwise_cfg.scales = str(tmp_path / "epoch_240.pth")
    model = build(cfg)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert len(wrapper.optimizer.weights) == len(model.backbone.blocks) == 6
    step(model, wrapper, 64, 1000)
    check_conversion(model, 64)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiments_differ_from_their_bases_in_what_they_say(path):
    cfg = Config.fromfile(path)
    cfg.model.backbone.init_cfg = None
    model = build(cfg)
    blocks = [module for module in model.modules() if isinstance(module, RepMLPBlock)]
    assert not any(block.local_branches for block in blocks)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    is_reparameterized = "repopt" in path.stem
    assert isinstance(optimizer, GradientReparameterization) is is_reparameterized
    if is_reparameterized:
        assert [(weight.addition.scale.item(), len(weight.addition.addends)) for weight in optimizer.weights] == [
            (1.0 if "sheets" in path.stem else 0.1, 2)
        ] * len(blocks)
    assert cfg.optim_wrapper.clip_grad == (None if is_reparameterized else dict(max_norm=5.0))


def step(model: nn.Module, wrapper: object, side: int, classes: int) -> None:
    samples = [DataSample().set_gt_label(index % classes) for index in range(4)]
    before = copy.deepcopy(model.backbone.state_dict())
    losses = model.train().train_step(
        dict(inputs=torch.randint(0, 255, (4, 3, side, side)), data_samples=samples), wrapper
    )
    assert torch.isfinite(losses["loss"])
    assert any(not torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())


def check_conversion(model: nn.Module, side: int) -> None:
    images = torch.rand(2, 3, side, side)
    with torch.no_grad():
        expected = model.eval()(images, mode="tensor")
        mmrepmlp.switch_to_deploy(model)
        actual = model(images, mode="tensor")
    for a, e in zip(actual, expected):
        assert relative_error(a, e) < 1e-5
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())

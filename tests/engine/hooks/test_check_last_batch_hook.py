# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmseg.models.decode_heads.psp_head import PPM
from torch import nn
from torch.utils.data import BatchSampler, DataLoader

from mmrepmlp.engine import CheckLastBatchHook
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.explain import ExplainedError, explained

NORM = dict(type="BN")
PYRAMID = PPM((1, 2), 4, 4, None, NORM, dict(type="ReLU"), False)
VECTORS = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4))
MAPS = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


def run(model: nn.Module, images: int, loader: dict, iterations: int) -> None:
    """Train for an epoch, as MMEngine calls a hook."""
    hook = CheckLastBatchHook()
    loader = DataLoader(torch.rand(images, 4, 6, 6), **loader)
    runner = SimpleNamespace(model=model.train(), train_dataloader=loader, max_iters=iterations)
    hook.before_train(runner)
    for i, images in zip(range(iterations), loader):
        model(images)
        hook.after_train_iter(runner, i)


@pytest.mark.parametrize("model, name", [(PYRAMID, r"0\.1\.bn"), (VECTORS, "2"), (MAPS, None)])
@pytest.mark.parametrize(
    "images, loader, iterations, single",
    [
        (9, dict(batch_size=4), 9, True),
        (9, dict(batch_size=4, drop_last=True), 2, False),
        (9, dict(batch_size=4), 2, False),  # it does not come so far
        (10, dict(batch_size=4), 3, False),
        (9, dict(batch_size=4, sampler="infinite"), 3, False),
        (9, dict(batch_sampler=BatchSampler(range(9), 4, False)), 9, True),
    ],
)
def test_only_what_will_fail_is_told(model, name, images, loader, iterations, single):
    if "sampler" in loader:
        loader = loader | dict(sampler=InfiniteSampler(range(images)))
    if not (single and name):
        run(model, images, loader, iterations)
        return
    setting = "drop_last" if "batch_size" in loader else r"batch_sampler\.drop_last"
    message = rf"one image, from which model\.{name} cannot .* Set train_dataloader\.{setting}=True"
    with pytest.raises(MMRepMLPError, match=message):
        run(model, images, loader, iterations)


def test_norms_in_eval_mode_take_any_batch():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4))
    hook, loader = CheckLastBatchHook(), DataLoader(torch.rand(9, 4, 6, 6), 4, sampler=DefaultSampler(range(9), False))
    runner = SimpleNamespace(model=model.eval(), train_dataloader=loader, max_iters=3)
    hook.before_train(runner)
    assert len(hook.handles) == 1
    model(torch.rand(4, 4, 6, 6))
    hook.after_train_iter(runner, 0)
    assert not hook.handles and not model[1]._forward_pre_hooks


@pytest.mark.parametrize("batch_size, advice", [(4, "drop_last=True"), (1, "batch_size to 2 or more")])
def test_what_fails_without_the_check_is_explained(batch_size, advice):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4))
    cfg = Config(dict(model=dict(backbone={}), train_dataloader=dict(batch_size=batch_size)))
    message = rf"ValueError: .* one image, and .* batch norm model\.1\. Set train_dataloader\.{advice}"
    with pytest.raises(ExplainedError, match=message), explained(cfg):
        model(torch.rand(1, 4, 6, 6))

# SPDX-License-Identifier: Apache-2.0
"""Small models and batches whose annotations are checked."""

import logging
from types import SimpleNamespace

import mmdet.models  # noqa: F401
import mmseg.models  # noqa: F401
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from torch import nn
from torch.utils.data import DataLoader

from mmrepmlp.engine import CheckAnnotationsHook

CROSS_ENTROPY = dict(type="CrossEntropyLoss")


def build(scope: str, **settings) -> nn.Module:
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(settings)


def classifier(num_classes: int, head: str = "LinearClsHead", **settings) -> nn.Module:
    head = dict(type=head, num_classes=num_classes, in_channels=4, **settings)
    return build("mmpretrain", type="ImageClassifier", backbone=dict(type="LeNet5"), head=head)


def segmentor(num_classes: int, loss: dict = CROSS_ENTROPY, **settings) -> nn.Module:
    head = dict(type="FCNHead", in_channels=4, channels=4) | settings
    head = dict(num_classes=num_classes, loss_decode=loss, **head)
    return build("mmseg", type="EncoderDecoder", backbone=dict(type=nn.Identity), decode_head=head)


def detector(num_classes: int) -> nn.Module:
    head = dict(type="FCOSHead", num_classes=num_classes, in_channels=4, feat_channels=4, norm_cfg=None)
    return build("mmdet", type="SingleStageDetector", backbone=dict(type=nn.Identity), bbox_head=head)


def run_of(model: nn.Module, dataset: object = (), val: object = None) -> SimpleNamespace:
    """What the hook sees of a runner."""
    loaders = {f"{name}_dataloader": DataLoader(dataset if name != "val" else val) for name in ("train", "val", "test")}
    return SimpleNamespace(model=model, val_loop=val is not None, logger=logging.getLogger("hook"), **loaders)


def started(model: nn.Module, dataset: object = (), val: object = None) -> CheckAnnotationsHook:
    """The hook of a training that begins."""
    hook = CheckAnnotationsHook()
    hook.before_train(run_of(model, dataset, val))
    return hook


def begun_test(model: nn.Module, dataset: object, checkpoint: dict) -> CheckAnnotationsHook:
    """The hook of a test that begins."""
    hook, run = CheckAnnotationsHook(), run_of(model, dataset)
    hook.after_load_checkpoint(run, checkpoint)
    hook.before_test(run)
    return hook


def check(model: nn.Module, *samples: object, dataset: object = ()) -> None:
    """Let the hook see a batch."""
    data = dict(inputs=[], data_samples=list(samples))
    started(model, dataset).before_train_iter(run_of(model, dataset), 0, data)

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


def started(model: nn.Module, dataset: object = ()) -> CheckAnnotationsHook:
    """The hook of a training that begins."""
    hook = CheckAnnotationsHook()
    hook.before_train(
        SimpleNamespace(model=model, train_dataloader=DataLoader(dataset), logger=logging.getLogger("hook"))
    )
    return hook


def check(model: nn.Module, *samples: object) -> None:
    """Let the hook see a batch."""
    started(model).before_train_iter(None, 0, dict(inputs=[], data_samples=list(samples)))

# SPDX-License-Identifier: Apache-2.0
"""Small models and data sets whose annotations are checked."""

import logging
from pathlib import Path
from types import SimpleNamespace

import mmdet.models  # noqa: F401
import mmseg.models  # noqa: F401
from mmdet.datasets import CocoDataset
from mmengine.config import Config
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


def run(dataset, model: nn.Module, loader: dict | None = None, **settings) -> CheckAnnotationsHook:
    """Run the hook's check before training."""
    hook = CheckAnnotationsHook(**settings)
    loader, cfg = DataLoader(dataset, **(loader or {})), Config(dict(model=dict(head=dict(num_classes=2))))
    logger = logging.getLogger("hook")
    hook.before_train(SimpleNamespace(cfg=cfg, model=model, train_dataloader=loader, logger=logger))
    return hook


def coco_dataset(folder: Path, classes: tuple) -> CocoDataset:
    """The data set of the file that the fixture ``detection`` writes, with other names of its classes."""
    files = dict(ann_file="coco.json", data_root=str(folder), data_prefix=dict(img=""))
    return CocoDataset(**files, metainfo=dict(classes=classes), pipeline=[])

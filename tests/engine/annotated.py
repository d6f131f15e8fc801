# SPDX-License-Identifier: Apache-2.0
"""Small models, datasets and batches whose annotations are checked."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import mmdet.models  # noqa: F401
import mmseg.models  # noqa: F401
from mmdet.datasets import CocoDataset
from mmengine.registry import DefaultScope
from mmpretrain.datasets import CustomDataset
from mmpretrain.registry import MODELS
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from mmrepmlp.engine import CheckAnnotationsHook
from mmrepmlp.engine.hooks.annotation_files import AnnotationError

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


def write_image(path: Path, width: int = 8, height: int = 8, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width, height)).save(path, **({} if orientation == 1 else dict(exif=exif)))


def classified(root: Path, *folders: str, **settings) -> CustomDataset:
    """Folders of one image each, but for those whose name ends in a slash."""
    for name in folders:
        (root / name).mkdir(parents=True)
        if not name.endswith("/"):
            write_image(root / name / "0.png")
    return CustomDataset(data_root=str(root), **settings)


def boxed(root: Path, *classes: str, size: tuple[int, int] = (8, 8), pipeline: Sequence[dict] = ()) -> CocoDataset:
    """An image ``img/1.jpg`` with a box of category a and one of b."""
    box, (width, height) = dict(image_id=1, bbox=[0, 0, 4, 4], area=16, iscrowd=0), size
    content = dict(
        images=[dict(id=1, file_name="1.jpg", width=width, height=height)],
        annotations=[dict(**box, id=i, category_id=i) for i in (1, 2)],
        categories=[dict(id=1, name="a"), dict(id=2, name="b")],
    )
    (root / "coco.json").write_text(json.dumps(content))
    files = dict(data_root=str(root), ann_file="coco.json", data_prefix=dict(img="img"))
    with DefaultScope.overwrite_default_scope("mmdet"):
        return CocoDataset(**files, metainfo=dict(classes=classes), pipeline=list(pipeline))


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


def refusal(operation: Callable, *arguments: object) -> str:
    """Why annotations are refused; empty where they are not."""
    try:
        operation(*arguments)
    except AnnotationError as error:
        return str(error)
    return ""

# SPDX-License-Identifier: Apache-2.0
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.dataset import RepeatDataset
from mmengine.structures import PixelData
from mmpretrain.datasets import CustomDataset
from mmseg.datasets import BaseSegDataset
from mmseg.structures import SegDataSample
from torch import nn

from mmrepmlp.engine import CheckAnnotationsHook


def run(dataset, num_classes: int, head: str = "decode_head", **settings) -> CheckAnnotationsHook:
    """Run the hook's check before training."""
    model = nn.Module()
    setattr(model, head, nn.Identity())
    getattr(model, head).num_classes = num_classes
    hook = CheckAnnotationsHook(**settings)
    hook.before_train(SimpleNamespace(model=model, train_dataloader=SimpleNamespace(dataset=dataset)))
    return hook


@pytest.fixture
def segmentation(tmp_path):
    """Class maps with classes 0 and 1 and pixels to ignore; the fourth of five has a pixel of class 7."""
    for folder in ("img", "ann"):
        (tmp_path / folder).mkdir()
    for i in range(5):
        class_map = np.zeros((4, 6), np.uint8)
        class_map[0] = 1
        class_map[1] = 255
        class_map[2, 2] = 7 if i == 3 else 0
        cv2.imwrite(str(tmp_path / f"img/{i}.png"), np.zeros((4, 6, 3), np.uint8))
        cv2.imwrite(str(tmp_path / f"ann/{i}.png"), class_map)
    return BaseSegDataset(
        data_root=str(tmp_path),
        data_prefix=dict(img_path="img", seg_map_path="ann"),
        img_suffix=".png",
        metainfo=dict(classes=("a", "b")),
        pipeline=[dict(type="mmseg.LoadImageFromFile"), dict(type="mmseg.LoadAnnotations")],
    )


def test_class_maps_are_read_before_training(segmentation):
    with pytest.raises(ValueError, match=r"ann/3\.png has 1 pixels of class 7, .* classes 0 to 1.* 255 .*Correct"):
        run(segmentation, 2)
    with pytest.raises(ValueError, match="class 7"):
        run(RepeatDataset(segmentation, 2), 2)
    run(segmentation, 8)
    run(segmentation, 2, samples=2)  # the first and the last


def test_other_class_maps_are_checked_as_they_come(segmentation):
    hook = run(segmentation, 2, samples=2)

    def batch(value: int) -> dict:
        sample = SegDataSample(metainfo=dict(seg_map_path="some.png"))
        sample.gt_sem_seg = PixelData(data=torch.full((1, 4, 6), value))
        return dict(inputs=[], data_samples=[sample])

    for value in (0, 1, 255):
        hook.before_train_iter(None, 0, batch(value))
    with pytest.raises(ValueError, match=r"some\.png has 24 pixels of class 2"):
        hook.before_train_iter(None, 0, batch(2))


def test_a_head_with_fewer_classes_than_the_data_set(segmentation):
    with pytest.raises(ValueError, match="BaseSegDataset has 2 classes, the model 1. Set num_classes=2"):
        run(segmentation, 1)


def test_labels_of_a_classification_data_set(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "0.png"), np.zeros((4, 4, 3), np.uint8))
    named = CustomDataset(data_root=str(tmp_path))
    with pytest.raises(ValueError, match="CustomDataset has 3 classes, the model 2"):
        run(named, 2, head="head")
    run(named, 3, head="head")
    (tmp_path / "list.txt").write_text("a/0.png 0\nb/0.png 4\n")
    listed = CustomDataset(data_root=str(tmp_path), ann_file="list.txt")
    with pytest.raises(ValueError, match=r"b/0\.png is of class 4, .* 0 to 2\. Set model\.head\.num_classes=5"):
        run(listed, 3, head="head")


def test_categories_that_are_not_declared(tmp_path):
    boxes = [dict(id=9, image_id=0, category_id=11, bbox=[0, 0, 2, 2], area=4, iscrowd=0)]
    images = [dict(id=0, file_name="0.png", height=4, width=4)]
    coco = dict(images=images, annotations=boxes, categories=[dict(id=1, name="a")])
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    settings = dict(data_root=str(tmp_path), metainfo=dict(classes=("a",)), pipeline=[])
    dataset = CocoDataset(ann_file="coco.json", data_prefix=dict(img=""), **settings)
    with pytest.raises(ValueError, match=r"coco\.json: annotation 9 is of category 11, which its 'categories' \(1\)"):
        run(dataset, 1, head="bbox_head")
    boxes[0]["category_id"] = 1
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    run(CocoDataset(ann_file="coco.json", data_prefix=dict(img=""), **settings), 1, head="bbox_head")

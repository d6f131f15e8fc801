# SPDX-License-Identifier: Apache-2.0
"""The same tools under mmsegmentation and mmdetection: a borrowed config, the backbone swapped, a few random images."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmrepmlp.apis import evaluate, reparameterize_checkpoint, train

pytestmark = pytest.mark.slow

BACKBONE = """dict(
    _delete_=True, type="mmrepmlp.RepMLPNet", img_size=64, out_indices=(0, 1, 2, 3),
    arch=dict(channels=[8, 16, 32, 64], depths=[1, 1, 1, 1], sharesets_nums=[1, 2, 4, 8]),
)"""
RUN = """
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=1, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3))
default_hooks = dict(checkpoint=dict(type="CheckpointHook", interval=1, by_epoch=True))
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=True), dataset=dataset(train_pipeline)
)
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False), dataset=dataset(test_pipeline)
)
test_dataloader = val_dataloader
test_evaluator = val_evaluator
del dataset
"""
SEGMENTATION = """
_base_ = ["mmseg::_base_/models/fpn_r50.py", "mmseg::_base_/default_runtime.py"]
norm_cfg = dict(type="BN")
model = dict(
    data_preprocessor=dict(size=(96, 80)), pretrained=None, backbone={backbone},
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    decode_head=dict(in_channels=[16] * 4, channels=16, num_classes=2, norm_cfg=norm_cfg),
)
train_pipeline = [
    dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")
]
test_pipeline = train_pipeline
def dataset(pipeline):
    return dict(
        type="BaseSegDataset", data_root="{root}", data_prefix=dict(img_path="img", seg_map_path="ann"),
        img_suffix=".png", metainfo=dict(classes=("a", "b")), pipeline=pipeline,
    )
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
"""
DETECTION = """
_base_ = ["mmdet::_base_/models/retinanet_r50_fpn.py", "mmdet::_base_/default_runtime.py"]
model = dict(
    backbone={backbone}, neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(num_classes=1, in_channels=16, feat_channels=16, stacked_convs=1),
    test_cfg=dict(score_thr=0),
)
train_pipeline = [
    dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(80, 96), keep_ratio=True), dict(type="PackDetInputs"),
]
test_pipeline = train_pipeline
def dataset(pipeline):
    return dict(
        type="CocoDataset", data_root="{root}", ann_file="coco.json", data_prefix=dict(img="img"),
        metainfo=dict(classes=("a",)), pipeline=pipeline, test_mode=pipeline is test_pipeline,
    )
val_evaluator = dict(type="CocoMetric", ann_file="{root}/coco.json", metric="bbox")
"""


@pytest.fixture
def root(tmp_path) -> Path:
    """Four random images with a segmentation map and a box each."""
    generator = np.random.default_rng(0)
    images, boxes = [], []
    for folder in ("img", "ann"):
        (tmp_path / folder).mkdir()
    for i in range(4):
        cv2.imwrite(str(tmp_path / f"img/{i}.png"), generator.integers(0, 256, (96, 80, 3), dtype=np.uint8))
        cv2.imwrite(str(tmp_path / f"ann/{i}.png"), generator.integers(0, 2, (96, 80), dtype=np.uint8))
        images.append(dict(id=i, file_name=f"{i}.png", height=96, width=80))
        boxes.append(dict(id=i, image_id=i, category_id=1, bbox=[8, 8, 40, 40], area=1600, iscrowd=0))
    coco = dict(images=images, annotations=boxes, categories=[dict(id=1, name="a")])
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    return tmp_path


@pytest.mark.parametrize("template", [SEGMENTATION, DETECTION], ids=["mmsegmentation", "mmdetection"])
def test_train_test_and_convert(template, root):
    config = root / "config.py"
    config.write_text(template.format(backbone=BACKBONE, root=root) + RUN)
    work_dir = str(root / "run")
    train(config, work_dir)
    checkpoint = root / "run/epoch_1.pth"
    before = evaluate(config, checkpoint, work_dir)
    after = evaluate(config, checkpoint, work_dir, deploy=True)
    report = reparameterize_checkpoint(config, checkpoint, root / "deploy.pth")
    converted = evaluate(report.config, report.checkpoint, work_dir)
    assert before and after == pytest.approx(before, abs=1e-4) and converted == pytest.approx(before, abs=1e-4)

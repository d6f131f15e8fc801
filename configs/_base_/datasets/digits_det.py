# SPDX-License-Identifier: Apache-2.0
# Scenes of handwritten digits, 120 x 152 pixels, 10 classes, written by tools/dataset_converters/digits.py --task det.
metainfo = dict(classes=tuple("0123456789"))
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomResize", scale=(152, 120), ratio_range=(0.9, 1.1), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(120, 152)),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(152, 120), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
dataset = dict(_scope_="mmdet", type="CocoDataset", metainfo=metainfo, data_root="data/digits_det")
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    batch_sampler=dict(_scope_="mmdet", type="AspectRatioBatchSampler"),
    dataset=dict(
        **dataset,
        ann_file="annotations/train.json",
        data_prefix=dict(img="train"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **dataset,
        ann_file="annotations/val.json",
        data_prefix=dict(img="val"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(_scope_="mmdet", type="CocoMetric", ann_file="data/digits_det/annotations/val.json", metric="bbox")
test_evaluator = val_evaluator

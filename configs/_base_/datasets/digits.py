# SPDX-License-Identifier: Apache-2.0
# 1,797 scans of handwritten digits, 8 x 8 pixels, in the ImageNet folder layout, written by
# tools/dataset_converters/digits.py.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=64, interpolation="bicubic"),
    dict(type="Rotate", magnitude_range=(0, 12), prob=0.5, pad_val=0),
    dict(type="Translate", magnitude_range=(0, 0.1), prob=0.5, pad_val=0, direction="horizontal"),
    dict(type="Translate", magnitude_range=(0, 0.1), prob=0.5, pad_val=0, direction="vertical"),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=64, interpolation="bicubic"),
    dict(type="PackInputs"),
]

data_preprocessor = dict(num_classes=10, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)
dataset = dict(_scope_="mmpretrain", type="CustomDataset", data_root="data/digits")
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    dataset=dict(data_prefix="train", pipeline=train_pipeline, **dataset),
    sampler=dict(type="DefaultSampler", shuffle=True),
)
val_dataloader = dict(
    batch_size=60,
    num_workers=1,
    dataset=dict(data_prefix="val", pipeline=test_pipeline, **dataset),
    sampler=dict(type="DefaultSampler", shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = dict(_scope_="mmpretrain", type="Accuracy", topk=(1,))
test_evaluator = val_evaluator

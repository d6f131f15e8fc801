# SPDX-License-Identifier: Apache-2.0
_base_ = ["mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py"]

# The authors' augmentation: random-resized-crop, flip, RandAugment with magnitudes up to 15; no random erasing.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=224, backend="pillow", interpolation="bilinear"),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(
        type="RandAugment",
        policies="timm_increasing",
        num_policies=2,
        total_level=10,
        magnitude_level=15,
        magnitude_std="inf",
        hparams=dict(pad_val=[104, 116, 124], interpolation="bilinear"),
    ),
    dict(type="PackInputs"),
]
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=train_pipeline))

# SPDX-License-Identifier: Apache-2.0
_base_ = [
    "mmpretrain::_base_/default_runtime.py",
    "../_base_/models/repmlpnet.py",
    "../_base_/datasets/imagenet_bs32_repmlpnet_256.py",
    "../_base_/schedules/imagenet_bs256_adamw_100e.py",
]

model = dict(backbone=dict(img_size=256))

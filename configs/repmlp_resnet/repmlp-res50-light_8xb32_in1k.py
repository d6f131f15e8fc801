# SPDX-License-Identifier: Apache-2.0
# The paper's recipe: 100 epochs, cosine from 0.1, mixup and AutoAugment. It names no strength of the mixup; 0.2 is
# mmpretrain's.
_base_ = [
    "mmpretrain::_base_/models/resnet50.py",
    "mmpretrain::_base_/datasets/imagenet_bs64_autoaug.py",
    "mmpretrain::_base_/schedules/imagenet_bs256_coslr.py",
    "mmpretrain::_base_/default_runtime.py",
]

custom_imports = dict(imports=["mmrepmlp"])
model = dict(
    _scope_="mmpretrain",
    backbone=dict(_delete_=True, type="mmrepmlp.RepMLPResNet", block="light", img_size=224),
    head=dict(loss=dict(use_soft=True)),
    train_cfg=dict(augments=dict(type="Mixup", alpha=0.2)),
)
train_dataloader = dict(batch_size=32)

# SPDX-License-Identifier: Apache-2.0
# The authors' search for the scales: 240 epochs on CIFAR-100; only the scales are used.
_base_ = [
    "mmpretrain::_base_/models/resnet50.py",
    "mmpretrain::_base_/datasets/cifar100_bs16.py",
    "mmpretrain::_base_/schedules/cifar10_bs128.py",
    "mmpretrain::_base_/default_runtime.py",
]

custom_imports = dict(imports=["mmrepmlp"])
model = dict(
    _scope_="mmpretrain",
    backbone=dict(_delete_=True, type="mmrepmlp.RepOptVGG", arch="B1", form="hyper_search"),
    head=dict(num_classes=100, topk=(1,)),
)
optim_wrapper = dict(
    optimizer=dict(weight_decay=4e-5),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, end=10, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=0, by_epoch=True, begin=10, end=240, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=240, val_interval=10)

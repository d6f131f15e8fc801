# SPDX-License-Identifier: Apache-2.0
# The authors' recipe: 120 epochs, 5 of warm-up, cosine from 0.1, RandAugment. The scales are those of
# repopt-vgg-b1_hyper-search_8xb16_cifar100.py, or the authors' file of them.
_base_ = [
    "mmpretrain::_base_/models/resnet50.py",
    "../_base_/datasets/imagenet_bs32_repmlpnet_224.py",
    "mmpretrain::_base_/schedules/imagenet_bs256.py",
    "mmpretrain::_base_/default_runtime.py",
]

custom_imports = dict(imports=["mmrepmlp"])
model = dict(
    _scope_="mmpretrain",
    backbone=dict(_delete_=True, type="mmrepmlp.RepOptVGG", arch="B1"),
    head=dict(loss=dict(_delete_=True, type="LabelSmoothLoss", label_smooth_val=0.1, mode="original")),
)
optim_wrapper = dict(
    constructor="mmrepmlp.RepOptimizerConstructor",
    optimizer=dict(weight_decay=4e-5, nesterov=True),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        scales="work_dirs/repopt-vgg-b1_hyper-search_8xb16_cifar100/epoch_240.pth",
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=0, by_epoch=True, begin=5, end=120, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=120)

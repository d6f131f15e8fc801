# SPDX-License-Identifier: Apache-2.0
# Small enough to train in about a minute on two CPU cores.
_base_ = [
    "mmpretrain::_base_/default_runtime.py",
    "../_base_/models/repmlpnet.py",
    "../_base_/datasets/digits.py",
    "../_base_/schedules/imagenet_bs256_adamw_100e.py",
]

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, channels=[24, 48, 96, 192], depths=[1, 1, 2, 1], sharesets_nums=[1, 4, 16, 64]),
        img_size=64,
        fc3_norm_init=0.1,  # too few images to learn locality in a dense layer; the convolutions have it built in
    ),
    head=dict(num_classes=10, in_channels=192, topk=(1,)),
    train_cfg=None,
)

epochs = 14
optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.05))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, end=2, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=0, by_epoch=True, begin=2, end=epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=epochs, val_interval=1)
default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=epochs, max_keep_ckpts=1),
    visualization=dict(rescale_factor=5),  # 64 pixels are too few to write a class on
)
auto_scale_lr = dict(base_batch_size=64)
randomness = dict(seed=0)

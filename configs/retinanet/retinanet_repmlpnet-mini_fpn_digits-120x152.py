# SPDX-License-Identifier: Apache-2.0
# Small enough to fine-tune in a few minutes on two CPU cores, from the weights trained by
# repmlpnet-mini_1xb64_digits-64px.py.
_base_ = [
    "mmdet::_base_/models/retinanet_r50_fpn.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "mmdet::_base_/default_runtime.py",
    "../_base_/datasets/digits_det.py",
    "../_base_/backbones/repmlpnet-mini.py",
    "../_base_/schedules/adamw.py",
]

norm_cfg = dict(type="BN", requires_grad=True)
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3, pad_size_divisor=1),
    backbone=_base_.repmlpnet,
    neck=dict(in_channels=_base_.channels, out_channels=48, num_outs=3, norm_cfg=norm_cfg),
    bbox_head=dict(
        num_classes=10,
        in_channels=48,
        feat_channels=48,
        stacked_convs=2,
        norm_cfg=norm_cfg,
        anchor_generator=dict(strides=[8, 16, 32]),
    ),
)

epochs = 2
optim_wrapper = {
    **_base_.adamw,
    "optimizer": dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    "paramwise_cfg": dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(neck=dict(lr_mult=3.0), bbox_head=dict(lr_mult=3.0)),
    ),
    "clip_grad": dict(max_norm=5.0),
}
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=50),
    dict(type="CosineAnnealingLR", eta_min=0, by_epoch=True, end=epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
default_hooks = dict(checkpoint=dict(interval=epochs, max_keep_ckpts=1))
randomness = dict(seed=0)

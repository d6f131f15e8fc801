# SPDX-License-Identifier: Apache-2.0
# Small enough to fine-tune in a few minutes on two CPU cores, from the weights trained by
# repmlpnet-mini_1xb64_digits-64px.py. docs/segmentation.md explains the settings.
_base_ = [
    "mmseg::_base_/models/upernet_r50.py",
    "mmseg::_base_/schedules/schedule_20k.py",
    "mmseg::_base_/default_runtime.py",
    "../_base_/datasets/digits_seg.py",
    "../_base_/backbones/repmlpnet-mini.py",
    "../_base_/schedules/adamw.py",
]

norm_cfg = dict(type="BN", requires_grad=True)
head = dict(num_classes=11, norm_cfg=norm_cfg, dropout_ratio=0)
model = dict(
    data_preprocessor=dict(size=_base_.crop_size, mean=[127.5] * 3, std=[127.5] * 3),
    pretrained=None,
    backbone=_base_.repmlpnet,
    decode_head=dict(in_channels=_base_.channels, channels=48, **head),
    auxiliary_head=dict(
        in_channels=_base_.channels[3],
        in_index=3,
        channels=96,
        loss_decode=dict(loss_weight=1.0),
        **head,
    ),
)

iterations = 900
optim_wrapper = {
    **_base_.adamw,
    "optimizer": dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    "paramwise_cfg": dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(decode_head=dict(lr_mult=5.0), auxiliary_head=dict(lr_mult=10.0)),
    ),
    "clip_grad": dict(max_norm=5.0),
}
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, end=50),
    dict(type="CosineAnnealingLR", eta_min=0, by_epoch=False, begin=50, end=iterations),
]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(checkpoint=dict(interval=iterations, max_keep_ckpts=1))
env_cfg = dict(cudnn_benchmark=False)
randomness = dict(seed=0)

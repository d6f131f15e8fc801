# SPDX-License-Identifier: Apache-2.0
# The authors' recipe: 100 epochs, the first 10 a warm-up, lr 0.001 for a total batch of 256 images.
_base_ = ["mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py"]

optim_wrapper = dict(
    optimizer=dict(lr=1e-3, weight_decay=0.1),
    paramwise_cfg=dict(custom_keys=dict(_delete_=True)),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=5e-7 / 1e-3, by_epoch=True, end=10, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=0, by_epoch=True, begin=10, end=100, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=100)
auto_scale_lr = dict(base_batch_size=256)

# SPDX-License-Identifier: Apache-2.0
# The ResNet-56 from which the compression configs here start. Not run here.
_base_ = ["mmpretrain::resnet/resnet18_8xb16_cifar10.py"]

model = dict(
    backbone=dict(_delete_=True, type="mmrepmlp.CIFARResNet", depth=56),
    head=dict(in_channels=64),
)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(optimizer=dict(lr=0.05), paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
param_scheduler = dict(milestones=[200, 400])
train_cfg = dict(max_epochs=600)
default_hooks = dict(checkpoint=dict(interval=100))
auto_scale_lr = dict(base_batch_size=64)

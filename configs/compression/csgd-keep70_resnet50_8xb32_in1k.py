# SPDX-License-Identifier: Apache-2.0
# C-SGD: keep 70 % of the internal filters of a trained ResNet-50, with the schedule of the authors' code. Not run here.
_base_ = ["mmpretrain::resnet/resnet50_8xb32_in1k.py"]

load_from = "https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth"
custom_hooks = [dict(type="mmrepmlp.CSGDHook", keep=0.7, strength=0.05)]

optim_wrapper = dict(
    optimizer=dict(lr=3e-3, nesterov=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="MultiStepLR", by_epoch=True, milestones=[30, 50, 60], gamma=0.1),
]
train_cfg = dict(max_epochs=70)

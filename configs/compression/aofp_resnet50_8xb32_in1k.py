# SPDX-License-Identifier: Apache-2.0
# AOFP: search for unimportant filters of a trained ResNet-50, with the settings of the authors' code. Continue training
# with the smaller model. Not run here.
_base_ = ["mmpretrain::resnet/resnet50_8xb32_in1k.py"]

load_from = "https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth"
custom_hooks = [dict(type="mmrepmlp.AOFPHook", target=0.5)]

optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
param_scheduler = []
train_cfg = dict(max_epochs=100)

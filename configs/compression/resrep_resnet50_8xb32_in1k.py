# SPDX-License-Identifier: Apache-2.0
# ResRep: keep 45.5 % of the multiply-adds of a trained ResNet-50, with the schedule of the authors' code. Not run here.
_base_ = ["mmpretrain::resnet/resnet50_8xb32_in1k.py"]

load_from = "https://download.openmmlab.com/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth"
model = dict(_delete_=True, type="mmrepmlp.ResRep", model={{_base_.model}})
custom_hooks = [dict(type="mmrepmlp.ResRepHook", target=0.455)]

optim_wrapper = dict(optimizer=dict(lr=0.01), paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
param_scheduler = dict(
    _delete_=True, type="CosineAnnealingLR", eta_min=0, by_epoch=True, end=180, convert_to_iter_based=True
)
train_cfg = dict(max_epochs=180)

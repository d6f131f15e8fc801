# SPDX-License-Identifier: Apache-2.0
# ResRep: keep 47.1 % of the multiply-adds of a trained ResNet-56, with the schedule of the authors' code. Not run here.
_base_ = ["resnet56_1xb64_cifar10.py"]

load_from = "work_dirs/resnet56_1xb64_cifar10/epoch_600.pth"
model = dict(_delete_=True, type="mmrepmlp.ResRep", model={{_base_.model}})
custom_hooks = [dict(type="mmrepmlp.ResRepHook", target=0.471)]
optim_wrapper = dict(optimizer=dict(lr=0.01))
param_scheduler = dict(
    _delete_=True, type="CosineAnnealingLR", eta_min=0, by_epoch=True, end=480, convert_to_iter_based=True
)
train_cfg = dict(max_epochs=480)

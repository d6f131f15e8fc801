# SPDX-License-Identifier: Apache-2.0
# AOFP: search for unimportant filters of a trained ResNet-56, with the settings of the authors' code. Continue training
# with the smaller model. Not run here.
_base_ = ["resnet56_1xb64_cifar10.py"]

load_from = "work_dirs/resnet56_1xb64_cifar10/epoch_600.pth"
custom_hooks = [dict(type="mmrepmlp.AOFPHook", target=0.5)]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = []

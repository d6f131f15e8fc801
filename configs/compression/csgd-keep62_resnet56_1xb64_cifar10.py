# SPDX-License-Identifier: Apache-2.0
# C-SGD: keep five eighths of the filters of all layers of a trained ResNet-56, residual streams included, with the
# schedule of the authors' code. Not run here.
_base_ = ["resnet56_1xb64_cifar10.py"]

load_from = "work_dirs/resnet56_1xb64_cifar10/epoch_600.pth"
custom_hooks = [dict(type="mmrepmlp.CSGDHook", keep=5 / 8, strength=3e-3, streams=True)]
optim_wrapper = dict(optimizer=dict(lr=3e-2, nesterov=True))

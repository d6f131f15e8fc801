# SPDX-License-Identifier: Apache-2.0
# GSM: keep a tenth of the weights of a trained ResNet-56, with the schedule of the authors' code. Not run here.
_base_ = ["resnet56_1xb64_cifar10.py"]

load_from = "work_dirs/resnet56_1xb64_cifar10/epoch_600.pth"
custom_hooks = [dict(type="mmrepmlp.GSMHook", nonzero=0.1)]
optim_wrapper = dict(optimizer=dict(lr=5e-3, momentum=0.98))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="MultiStepLR", by_epoch=True, milestones=[400, 500], gamma=0.1),
]

# SPDX-License-Identifier: Apache-2.0
_base_ = "repopt-vgg-b1_8xb32_in1k.py"

model = dict(backbone=dict(arch="L2"), head=dict(in_channels=2560))
scales = "work_dirs/repopt-vgg-l2_hyper-search_8xb16_cifar100/epoch_240.pth"
optim_wrapper = dict(paramwise_cfg=dict(scales=scales))

# SPDX-License-Identifier: Apache-2.0
_base_ = "repopt-vgg-b1_hyper-search_8xb16_cifar100.py"

model = dict(backbone=dict(arch="B2"), head=dict(in_channels=2560))

# SPDX-License-Identifier: Apache-2.0
_base_ = "../repmlpnet/repmlpnet-mini_1xb64_digits-64px.py"

model = dict(backbone=dict(reparam_conv_kernels=None))

# SPDX-License-Identifier: Apache-2.0
_base_ = "resnet18-slim_1xb64_digits-64px.py"

model = dict(backbone=dict(conv_cfg=dict(type="mmrepmlp.DBBConv2d")))

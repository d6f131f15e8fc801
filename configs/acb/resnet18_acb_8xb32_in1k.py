# SPDX-License-Identifier: Apache-2.0
_base_ = "mmpretrain::resnet/resnet18_8xb32_in1k.py"

custom_imports = dict(imports=["mmrepmlp"])
model = dict(backbone=dict(conv_cfg=dict(type="mmrepmlp.ACBConv2d")))

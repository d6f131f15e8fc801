# SPDX-License-Identifier: Apache-2.0
_base_ = "repmlp-res50-light_8xb32_in1k.py"

model = dict(backbone=dict(block="bottleneck"))

# SPDX-License-Identifier: Apache-2.0
_base_ = ["./repmlpnet-t224_8xb32_in1k.py"]

model = dict(backbone=dict(arch="B"), head=dict(in_channels=768))

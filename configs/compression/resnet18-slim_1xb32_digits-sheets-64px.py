# SPDX-License-Identifier: Apache-2.0
# A ResNet-18 of an eighth of the width, from which the compression configs here start; 3 epochs.
_base_ = "repmlpnet-mini_1xb32_digits-sheets-64px.py"

model = dict(
    backbone=dict(_delete_=True, type="ResNet", depth=18, stem_channels=8, base_channels=8),
    head=dict(in_channels=64),
)

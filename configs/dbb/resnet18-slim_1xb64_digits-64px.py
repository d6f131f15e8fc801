# SPDX-License-Identifier: Apache-2.0
# A ResNet-18 of an eighth of the width, to be compared with resnet18-slim_dbb_1xb64_digits-64px.py.
_base_ = "../repmlpnet/repmlpnet-mini_1xb64_digits-64px.py"

model = dict(
    backbone=dict(_delete_=True, type="ResNet", depth=18, stem_channels=8, base_channels=8),
    head=dict(in_channels=64),
)

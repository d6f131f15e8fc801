# SPDX-License-Identifier: Apache-2.0
# Fine-tunes the weights of repmlpnet-mini_no-locality_1xb64_digits-64px.py.
_base_ = "../upernet/upernet_repmlpnet-mini_1xb16-900_digits-120x152.py"

weights = "work_dirs/repmlpnet-mini_no-locality_1xb64_digits-64px/epoch_14.pth"
model = dict(backbone=dict(reparam_conv_kernels=None, init_cfg=dict(checkpoint=weights)))

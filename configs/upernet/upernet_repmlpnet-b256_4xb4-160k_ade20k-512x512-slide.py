# SPDX-License-Identifier: Apache-2.0
# Slide inference: tested in overlapping windows of the training size instead of on whole images.
_base_ = ["./upernet_repmlpnet-b256_4xb4-160k_ade20k-512x512.py"]

model = dict(test_cfg=dict(mode="slide", crop_size=(512, 512), stride=(341, 341)))

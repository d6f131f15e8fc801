# SPDX-License-Identifier: Apache-2.0
_base_ = [
    "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "../_base_/backbones/repmlpnet-b224.py",
    "../_base_/schedules/adamw.py",
]

model = dict(
    # Two images per GPU are too few for batch statistics.
    backbone={**_base_.repmlpnet, "norm_eval": True},
    neck=dict(in_channels=_base_.channels),
)
optim_wrapper = _base_.adamw

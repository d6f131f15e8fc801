# SPDX-License-Identifier: Apache-2.0
# The paper's RepMLP-Res50-g4/8, the backbone of its PSPNet.
_base_ = "repmlp-res50-bottleneck_8xb32_in1k.py"

model = dict(backbone=dict(img_size=320, h=10, w=10, reparam_conv_kernels=(1, 3, 5, 7), groups=(4, 8)))
sizes = dict(
    RandomResizedCrop=dict(scale=320),
    ResizeEdge=dict(scale=366),  # 320 / 0.875, as 256 is to 224
    CenterCrop=dict(crop_size=320),
)
train_pipeline = [{**step, **sizes.get(step["type"], {})} for step in _base_.train_pipeline]
test_pipeline = [{**step, **sizes.get(step["type"], {})} for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# SPDX-License-Identifier: Apache-2.0
_base_ = ["./imagenet_bs32_repmlpnet_224.py"]

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 256
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = 292  # the same ratio to the crop, 256 / 224, as at 224 pixels
test_pipeline[2].crop_size = 256

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# SPDX-License-Identifier: Apache-2.0
# The class is the digit at the top left of a sheet: it depends on the position, which fully connected layers know and
# convolutions do not. Written by tools/dataset_converters/digits.py --task sheets.
_base_ = "repmlpnet-mini_1xb64_digits-64px.py"

model = dict(backbone=dict(fc3_norm_init=1.0))

pipeline = [dict(type="LoadImageFromFile"), dict(type="PackInputs")]
train_dataloader = dict(dataset=dict(data_root="data/digits_sheets", pipeline=pipeline))
val_dataloader = dict(dataset=dict(data_root="data/digits_sheets", pipeline=pipeline))
test_dataloader = val_dataloader

epochs = 10
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=0, by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=epochs)
default_hooks = dict(checkpoint=dict(interval=epochs))

# SPDX-License-Identifier: Apache-2.0
# The RepMLPNet-mini from which the compression configs here start; 3 epochs.
_base_ = "../repmlpnet/repmlpnet-mini_1xb64_digits-sheets-64px.py"

epochs = 3
train_dataloader = dict(batch_size=32)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=True, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=0, by_epoch=True, begin=1, end=epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
default_hooks = dict(checkpoint=dict(interval=epochs))
auto_scale_lr = dict(base_batch_size=32)

# SPDX-License-Identifier: Apache-2.0
# Fine-tunes a trained network, as it is or after filters have been removed.
_base_ = "resnet18-slim_1xb32_digits-sheets-64px.py"

load_from = "work_dirs/resnet18-slim_1xb32_digits-sheets-64px/epoch_3.pth"
epochs = 2
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = dict(
    _delete_=True, type="CosineAnnealingLR", eta_min=0, by_epoch=True, end=epochs, convert_to_iter_based=True
)
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
default_hooks = dict(checkpoint=dict(interval=epochs))

# SPDX-License-Identifier: Apache-2.0
# Fine-tunes a trained detector for int8: one epoch with fake quantization of the backbone's deploy form.
_base_ = "../retinanet/retinanet_repmlpnet-mini_fpn_digits-120x152.py"

model = dict(backbone=dict(type="mmrepmlp.QuantizedRepMLPNet", init_cfg=None))
load_from = "work_dirs/retinanet_repmlpnet-mini_fpn_digits-120x152/epoch_2.pth"
custom_hooks = [dict(type="mmrepmlp.FakeQuantizeHook")]

epochs = 1
optim_wrapper = dict(optimizer=dict(lr=5e-5))
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=0, by_epoch=True, end=epochs, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
default_hooks = dict(checkpoint=dict(interval=epochs))

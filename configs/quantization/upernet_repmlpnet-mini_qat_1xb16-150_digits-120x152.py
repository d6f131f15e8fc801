# SPDX-License-Identifier: Apache-2.0
# Fine-tunes a trained segmentor for int8: 150 iterations with fake quantization of the backbone's deploy form.
_base_ = "../upernet/upernet_repmlpnet-mini_1xb16-900_digits-120x152.py"

model = dict(backbone=dict(type="mmrepmlp.QuantizedRepMLPNet", init_cfg=None))
load_from = "work_dirs/upernet_repmlpnet-mini_1xb16-900_digits-120x152/iter_900.pth"
custom_hooks = [dict(type="mmrepmlp.FakeQuantizeHook")]

iterations = 150
optim_wrapper = dict(optimizer=dict(lr=5e-5))
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=0, by_epoch=False, end=iterations)]
train_cfg = dict(max_iters=iterations, val_interval=iterations)
default_hooks = dict(checkpoint=dict(interval=iterations))

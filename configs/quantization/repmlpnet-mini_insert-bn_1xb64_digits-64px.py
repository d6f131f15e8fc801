# SPDX-License-Identifier: Apache-2.0
# Fine-tunes a deployed network for int8 with a batch norm after each fc3: two epochs in float, two with fake
# quantization. Pass its checkpoint as --cfg-options load_from=deploy-<hash>.pth.
_base_ = "../repmlpnet/repmlpnet-mini_1xb64_digits-64px.py"

model = dict(backbone=dict(type="mmrepmlp.QuantizedRepMLPNet", insert_bn=True))
custom_hooks = [dict(type="mmrepmlp.CollectStatisticsHook"), dict(type="mmrepmlp.FakeQuantizeHook", begin=2)]

epochs = 4
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [dict(type="CosineAnnealingLR", eta_min=0, by_epoch=True, end=epochs, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=epochs, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=epochs))

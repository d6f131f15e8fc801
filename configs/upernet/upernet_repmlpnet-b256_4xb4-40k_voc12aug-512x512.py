# SPDX-License-Identifier: Apache-2.0
_base_ = [
    "mmseg::upernet/upernet_r50_4xb4-40k_voc12aug-512x512.py",
    "../_base_/backbones/repmlpnet-b256.py",
    "../_base_/schedules/adamw.py",
]

model = dict(
    pretrained=None,
    backbone={**_base_.repmlpnet, "norm_cfg": dict(type="SyncBN")},
    decode_head=dict(in_channels=_base_.channels),
    auxiliary_head=dict(in_channels=_base_.channels[2]),
)
optim_wrapper = _base_.adamw
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, end=1500),
    dict(type="PolyLR", power=1.0, eta_min=0, by_epoch=False, begin=1500, end=_base_.train_cfg.max_iters),
]

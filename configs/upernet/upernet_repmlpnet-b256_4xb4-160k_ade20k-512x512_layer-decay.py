# SPDX-License-Identifier: Apache-2.0
_base_ = ["./upernet_repmlpnet-b256_4xb4-160k_ade20k-512x512.py"]

optim_wrapper = dict(
    constructor="mmrepmlp.LayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(layer_decay_rate=0.9),
)

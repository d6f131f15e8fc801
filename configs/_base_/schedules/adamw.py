# SPDX-License-Identifier: Apache-2.0
# Fine-tuning a pre-trained backbone: optim_wrapper=_base_.adamw.
adamw = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)

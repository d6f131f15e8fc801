# SPDX-License-Identifier: Apache-2.0
# The fully connected layers take part from the start; docs/images/fc3.png shows what they learn.
_base_ = "repmlpnet-mini_1xb64_digits-64px.py"

model = dict(backbone=dict(fc3_norm_init=1.0))
# The batch norm after fc3 undoes any scale, so weight decay shrinks nothing: it makes fc3 forget its random start.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={"fc3.weight": dict(decay_mult=300.0)}))

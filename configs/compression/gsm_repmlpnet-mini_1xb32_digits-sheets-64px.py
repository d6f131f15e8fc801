# SPDX-License-Identifier: Apache-2.0
_base_ = "finetune_repmlpnet-mini_1xb32_digits-sheets-64px.py"

model = dict(backbone=dict(deploy=True))  # zeros stay zero in this form
custom_hooks = [dict(type="mmrepmlp.GSMHook", nonzero=0.1)]
optim_wrapper = dict(optimizer=dict(_delete_=True, type="SGD", lr=0.1, momentum=0.9, weight_decay=0.026))

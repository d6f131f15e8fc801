# SPDX-License-Identifier: Apache-2.0
_base_ = "finetune_repmlpnet-mini_1xb32_digits-sheets-64px.py"

model = dict(_delete_=True, type="mmrepmlp.ResRep", model={{_base_.model}})
custom_hooks = [
    dict(type="mmrepmlp.ResRepHook", target=0.5, lasso=0.02, lr=0.1, momentum=0.9, start=20, interval=10, step=100)
]

# SPDX-License-Identifier: Apache-2.0
# GSM: keep a tenth of the weights of a RepMLPNet-B's fully connected layers, trained in the structure of the deploy
# form, in which zeros stay zero. Not run here.
_base_ = ["../repmlpnet/repmlpnet-b224_8xb32_in1k.py"]

model = dict(backbone=dict(gradient_reparam=True))
custom_hooks = [dict(type="mmrepmlp.GSMHook", nonzero=0.1, layers=["fc3"])]
optim_wrapper = dict(
    _delete_=True,
    constructor="mmrepmlp.RepOptimizerConstructor",
    optimizer=dict(type="SGD", lr=0.05, momentum=0.98, weight_decay=1e-4),
)

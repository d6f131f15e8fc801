# SPDX-License-Identifier: Apache-2.0
_base_ = "../repmlpnet/repmlpnet-mini_1xb64_digits-sheets-64px.py"

model = dict(backbone=dict(gradient_reparam=True))
optim_wrapper = dict(
    constructor="mmrepmlp.RepOptimizerConstructor",
    clip_grad=None,  # needs the norm of the branches' gradients, which do not exist
)

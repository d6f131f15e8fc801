# SPDX-License-Identifier: Apache-2.0
_base_ = "../repmlpnet/repmlpnet-mini_1xb64_digits-sheets-64px.py"

model = dict(backbone=dict(gradient_reparam=True))
optim_wrapper = dict(
    constructor="mmrepmlp.RepOptimizerConstructor",
    clip_grad=None,  # the gradients of the branches, whose norm it means, are not there
)

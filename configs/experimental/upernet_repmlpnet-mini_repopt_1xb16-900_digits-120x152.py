# SPDX-License-Identifier: Apache-2.0
# Fine-tunes the weights of repmlpnet-mini_repopt_1xb64_digits-64px.py.
_base_ = "../upernet/upernet_repmlpnet-mini_1xb16-900_digits-120x152.py"

weights = "work_dirs/repmlpnet-mini_repopt_1xb64_digits-64px/epoch_14.pth"
model = dict(
    backbone=dict(
        gradient_reparam=True,
        fc3_norm_init=0.1,  # as in that training
        init_cfg=dict(checkpoint=weights),
    )
)
optim_wrapper = dict(
    constructor="mmrepmlp.RepOptimizerConstructor",
    clip_grad=None,  # needs the norm of the branches' gradients, which do not exist
)

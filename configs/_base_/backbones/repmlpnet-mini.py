# SPDX-License-Identifier: Apache-2.0
# The backbone of repmlpnet-mini_1xb64_digits-64px.py with its trained weights in the default work dir.
custom_imports = dict(imports=["mmrepmlp"])
channels = [24, 48, 96, 192]
repmlpnet = dict(
    _delete_=True,
    type="mmrepmlp.RepMLPNet",
    arch=dict(channels=channels, depths=[1, 1, 2, 1], sharesets_nums=[1, 4, 16, 64]),
    img_size=64,
    out_indices=(0, 1, 2, 3),
    init_cfg=dict(
        type="Pretrained",
        checkpoint="work_dirs/repmlpnet-mini_1xb64_digits-64px/epoch_14.pth",
    ),
)

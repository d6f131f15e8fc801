# SPDX-License-Identifier: Apache-2.0
# A backbone for any config of mmsegmentation or mmdetection: list this file under _base_, then set
# backbone=_base_.repmlpnet, and in_channels=_base_.channels in the neck or head.
# The weights are the authors', to be downloaded by hand from the links in github.com/DingXiaoH/RepMLP.
custom_imports = dict(imports=["mmrepmlp"])
channels = [80, 160, 320, 640]
repmlpnet = dict(
    _delete_=True,
    type="mmrepmlp.RepMLPNet",
    arch="D",
    img_size=256,
    out_indices=(0, 1, 2, 3),
    drop_path_rate=0.2,
    init_cfg=dict(
        type="Pretrained",
        checkpoint="checkpoints/RepMLPNet-D256.pth",
    ),
)

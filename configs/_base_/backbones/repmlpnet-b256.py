# SPDX-License-Identifier: Apache-2.0
# A backbone for any config of mmsegmentation or mmdetection: list this file under _base_, then set
# backbone=_base_.repmlpnet, and in_channels=_base_.channels in the neck or head.
# The weights are the authors', as published by mmpretrain; a path or URL with either's tensor names works as well.
custom_imports = dict(imports=["mmrepmlp"])
channels = [96, 192, 384, 768]
repmlpnet = dict(
    _delete_=True,
    type="mmrepmlp.RepMLPNet",
    arch="B",
    img_size=256,
    out_indices=(0, 1, 2, 3),
    drop_path_rate=0.2,
    init_cfg=dict(
        type="Pretrained",
        checkpoint="https://download.openmmlab.com/mmclassification/v0/repmlp/repmlp-base_3rdparty_8xb64_in1k-256px_20220330-7c5a91ce.pth",
    ),
)

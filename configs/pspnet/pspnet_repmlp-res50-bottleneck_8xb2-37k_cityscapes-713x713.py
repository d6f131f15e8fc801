# SPDX-License-Identifier: Apache-2.0
# The paper's recipe: 200 epochs of 2975 images in batches of 16. c4 keeps its size without dilated convolutions, c5
# with those of PSPNet. The feature maps of c3 and c4 have 81 partitions: the global perceptrons have other sizes than
# those pre-trained at 320 pixels and start from random weights, and every image has the size of the crop.
_base_ = "mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py"

custom_imports = dict(imports=["mmrepmlp"])
crop_size = (713, 713)
model = dict(
    pretrained=None,
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        _delete_=True,
        type="mmrepmlp.RepMLPResNet",
        block="bottleneck",
        img_size=crop_size,
        h=10,
        w=10,
        reparam_conv_kernels=(1, 3, 5, 7),
        groups=(4, 8),
        globalperceptron_reduction=(4, 8),
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 1, 4),
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type="SyncBN"),
        init_cfg=dict(
            type="Pretrained",
            checkpoint="work_dirs/repmlp-res50-bottleneck_8xb32_in1k-320px/epoch_100.pth",
        ),
    ),
    decode_head=dict(align_corners=True),
    auxiliary_head=dict(align_corners=True),
    test_cfg=dict(mode="slide", crop_size=crop_size, stride=(476, 476)),
)
train_pipeline = [
    {**step, "crop_size": crop_size} if step["type"] == "RandomCrop" else step for step in _base_.train_pipeline
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
max_iters = 200 * 186
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0, by_epoch=False, begin=0, end=max_iters)]
train_cfg = dict(max_iters=max_iters, val_interval=20 * 186)
default_hooks = dict(checkpoint=dict(interval=20 * 186))

# SPDX-License-Identifier: Apache-2.0
"""Models that necks and heads fit, of all three frameworks."""

from mmengine.config import Config
from torch import nn

from tests.conftest import TINY

MAPS = [8, 16, 32, 64]
BACKBONE = dict(type="mmrepmlp.RepMLPNet", arch=TINY, img_size=64, out_indices=(0, 1, 2, 3))
BN = dict(type="BN")
UPER = dict(type="UPerHead", channels=8, num_classes=3, norm_cfg=BN, in_channels=MAPS, in_index=[0, 1, 2, 3])
FCN = dict(type="FCNHead", channels=8, num_classes=3, norm_cfg=BN, in_channels=32, in_index=2)
SETR = dict(FCN, _delete_=True, type="SETRUPHead", in_channels=1024, in_index=3)
CONCATENATED = dict(
    FCN,
    _delete_=True,
    in_channels=[18, 36, 72, 144],
    in_index=(0, 1, 2, 3),
    input_transform="resize_concat",
    channels=270,
    num_convs=0,
    concat_input=False,
)
SEGMENTOR = dict(type="mmseg.EncoderDecoder", backbone=BACKBONE, decode_head=UPER, auxiliary_head=[FCN])
CASCADE = dict(
    type="mmseg.CascadeEncoderDecoder",
    num_stages=2,
    backbone=BACKBONE,
    decode_head=[
        {**FCN, "in_channels": 64, "in_index": 3},
        dict(type="OCRHead", in_channels=64, in_index=3, channels=8, ocr_channels=8, num_classes=3, norm_cfg=BN),
    ],
)
DETECTOR = dict(
    type="mmdet.RetinaNet",
    backbone=BACKBONE,
    neck=dict(type="FPN", in_channels=MAPS, out_channels=16, num_outs=5),
    bbox_head=dict(
        type="RetinaHead",
        in_channels=16,
        feat_channels=8,
        num_classes=3,
        anchor_generator=dict(
            type="AnchorGenerator", scales=[8], ratios=[1.0], octave_base_scale=None, strides=[4, 8, 16, 32, 64]
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
    ),
)
# Its neck counts the maps from the last one on.
YOLO = dict(
    type="mmdet.YOLOV3",
    backbone={**BACKBONE, "out_indices": (1, 2, 3)},
    neck=dict(type="YOLOV3Neck", num_scales=3, in_channels=[64, 32, 16], out_channels=[32, 16, 8]),
    bbox_head=dict(
        type="YOLOV3Head",
        num_classes=3,
        in_channels=[32, 16, 8],
        out_channels=[64, 32, 16],
        anchor_generator=dict(type="YOLOAnchorGenerator", base_sizes=[[(9, 9)]] * 3, strides=[32, 16, 8]),
        bbox_coder=dict(type="YOLOBBoxCoder"),
    ),
)
CLASSIFIER = dict(
    type="mmpretrain.ImageClassifier",
    backbone={**BACKBONE, "out_indices": (3,)},
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", in_channels=64, num_classes=3),
)
# The backbones beside RepMLPNet, by the images that they take.
OTHERS = {
    "one size": dict(type="mmrepmlp.RepMLPResNet", base_channels=2, img_size=64, h=2, w=2, groups=2),
    "some sizes": dict(type="mmrepmlp.RepMLPResNet", base_channels=2, img_size=64, h=4, w=4, groups=2, repmlp_stages=2),
    "any size": dict(type="mmrepmlp.RepOptVGG", arch=dict(depths=[1] * 4, channels=[8, 16, 32, 64])),
}
BATCH_NORM = [dict(type="GlobalAveragePooling"), dict(type="ClsBatchNormNeck", input_features=768)]
TWO_NECKS = [dict(type="GlobalAveragePooling"), dict(type="LinearNeck", in_channels=64, out_channels=12)]


class ChannelsLast(nn.Module):
    """A neck that moves the channels to the last axis."""

    def __init__(self, in_channels):
        super().__init__()
        self.fc = nn.Linear(in_channels, 64)

    def forward(self, inputs):
        return (self.fc(inputs[-1].permute(0, 2, 3, 1)).mean((1, 2)),)


class Norm(nn.Module):
    """A neck that normalizes."""

    def __init__(self, layer, channels):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels) if layer == "batch" else nn.GroupNorm(1, channels)

    def forward(self, inputs):
        return (self.norm(inputs[-1]).mean((2, 3)),)


class Unpooled(nn.Module):
    """A neck that keeps the map."""

    def forward(self, inputs):
        return (inputs[-1].relu(),)


def config(model: dict, **changes) -> Config:
    scope = model["type"].partition(".")[0]
    cfg = Config(dict(model=model, default_scope=scope))
    for name, value in changes.items():
        cfg.merge_from_dict({f"model.{name}": value})
    return cfg


def norm(layer: str, channels: int) -> dict:
    return dict(_delete_=True, type=Norm, layer=layer, channels=channels)

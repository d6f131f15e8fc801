# SPDX-License-Identifier: Apache-2.0
"""Models that necks and heads fit, of all three frameworks, and parts that nobody but their author knows."""

import torch
from mmengine.config import Config
from mmseg.models import EncoderDecoder, FCNHead
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


class Own(nn.Module):
    """A part of somebody else, which takes what it gets."""

    in_channels = (1, 2, 3)

    def forward(self, *args, **kwargs):
        raise RuntimeError("not without my labels")


class OwnSegmentor(EncoderDecoder):
    """A segmentor of somebody else, whose heads get more maps than the backbone gives, with twice the channels."""

    def extract_feat(self, inputs):
        maps = [torch.cat([x, x], 1) for x in super().extract_feat(inputs)]
        return [*maps, maps[-1]]


class OwnHead(FCNHead):
    """A head of somebody else, which reads the last map wherever it is."""

    def forward(self, inputs):
        return self.cls_seg(self._forward_feature([inputs[-1]] * (self.in_index + 1)))


class Adapting(FCNHead):
    """A head of somebody else, which changes what it gets before it calls itself."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.adapt = nn.Conv2d(64, self.in_channels, 1)

    def predict(self, inputs, *args):
        return super().predict([self.adapt(inputs[-1])], *args)


class Flattened(nn.Module):
    """A neck for images of one size."""

    def __init__(self, in_features, dim):
        super().__init__()
        self.dim, self.fc = dim, nn.Linear(in_features, 64)

    def forward(self, inputs):
        return (self.fc(inputs[-1].flatten(self.dim)).flatten(1)[:, :64],)


class ChannelsLast(nn.Module):
    """A neck that moves the channels to the last axis."""

    def __init__(self, in_channels):
        super().__init__()
        self.fc = nn.Linear(in_channels, 64)

    def forward(self, inputs):
        return (self.fc(inputs[-1].permute(0, 2, 3, 1)).mean((1, 2)),)


class Unpooled(nn.Module):
    """A neck that keeps the map."""

    def forward(self, inputs):
        return (inputs[-1].relu(),)


class Fallback(nn.Module):
    """A neck that goes another way where one does not work."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 1)

    def forward(self, inputs):
        try:
            return (self.first(inputs[-1]).mean((2, 3)),)
        except RuntimeError:
            return (self.second(inputs[-1]).mean((2, 3)),)


def config(model: dict, **changes) -> Config:
    scope = model["type"].partition(".")[0]
    cfg = Config(dict(model=model, default_scope=scope))
    for name, value in changes.items():
        cfg.merge_from_dict({f"model.{name}": value})
    return cfg

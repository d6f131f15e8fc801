# SPDX-License-Identifier: Apache-2.0
from .backbones import RepMLPNet, RepMLPResNet, RepOptVGG
from .convs import ACBConv2d, DBBConv2d, RepVGGConv2d
from .images import image_channels, image_size
from .layers import RepMLPBlock, RepMLPNetUnit, RepMLPv1Block
from .parts import named_parts

__all__ = [
    "ACBConv2d",
    "DBBConv2d",
    "RepMLPBlock",
    "RepMLPNet",
    "RepMLPNetUnit",
    "RepMLPResNet",
    "RepMLPv1Block",
    "RepOptVGG",
    "RepVGGConv2d",
    "image_channels",
    "image_size",
    "named_parts",
]

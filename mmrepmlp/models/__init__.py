# SPDX-License-Identifier: Apache-2.0
from .backbones import RepMLPNet
from .images import image_channels, image_size
from .layers import RepMLPBlock, RepMLPNetUnit
from .parts import named_parts

__all__ = ["RepMLPBlock", "RepMLPNet", "RepMLPNetUnit", "image_channels", "image_size", "named_parts"]

# SPDX-License-Identifier: Apache-2.0
from .backbones import RepMLPNet
from .image_channels import image_channels
from .layers import RepMLPBlock, RepMLPNetUnit

__all__ = ["RepMLPBlock", "RepMLPNet", "RepMLPNetUnit", "image_channels"]

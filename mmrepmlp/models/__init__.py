# SPDX-License-Identifier: Apache-2.0
from .backbones import RepMLPNet
from .layers import RepMLPBlock, RepMLPNetUnit

__all__ = ["RepMLPBlock", "RepMLPNet", "RepMLPNetUnit"]

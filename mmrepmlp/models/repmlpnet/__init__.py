# SPDX-License-Identifier: Apache-2.0
from .block import RepMLPBlock
from .network import RepMLPNet
from .unit import RepMLPNetUnit

__all__ = ["RepMLPBlock", "RepMLPNet", "RepMLPNetUnit"]

# SPDX-License-Identifier: Apache-2.0
from .block import RepMLPBlock
from .conv import ConvBN, PatchEmbed
from .norm import ScaleShift, build_batch_norm
from .set_sharing_linear import SetSharingLinear
from .unit import RepMLPNetUnit

__all__ = ["ConvBN", "PatchEmbed", "RepMLPBlock", "RepMLPNetUnit", "ScaleShift", "SetSharingLinear", "build_batch_norm"]

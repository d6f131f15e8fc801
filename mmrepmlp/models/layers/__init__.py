# SPDX-License-Identifier: Apache-2.0
from .block import RepMLPBlock
from .bottleneck import PlainBottleneck, RepMLPBottleneck, RepMLPLightBlock
from .conv import ConvBN, PaddedConvBN, PatchEmbed
from .grouped_linear import GroupedLinear
from .norm import ScaleShift, build_batch_norm
from .set_sharing_linear import SetSharingLinear
from .unit import RepMLPNetUnit
from .v1_block import RepMLPv1Block

__all__ = [
    "ConvBN",
    "GroupedLinear",
    "PaddedConvBN",
    "PatchEmbed",
    "PlainBottleneck",
    "RepMLPBlock",
    "RepMLPBottleneck",
    "RepMLPLightBlock",
    "RepMLPNetUnit",
    "RepMLPv1Block",
    "ScaleShift",
    "SetSharingLinear",
    "build_batch_norm",
]

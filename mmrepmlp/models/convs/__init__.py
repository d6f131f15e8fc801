# SPDX-License-Identifier: Apache-2.0
from .conv import ReparameterizableConv2d
from .structures import ACBConv2d, DBBConv2d, RepVGGConv2d

__all__ = ["ACBConv2d", "DBBConv2d", "RepVGGConv2d", "ReparameterizableConv2d"]

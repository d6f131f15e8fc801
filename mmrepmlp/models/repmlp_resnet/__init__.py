# SPDX-License-Identifier: Apache-2.0
from .block import RepMLPv1Block
from .network import RepMLPResNet

__all__ = ["RepMLPResNet", "RepMLPv1Block"]

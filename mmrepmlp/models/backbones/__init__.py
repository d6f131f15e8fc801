# SPDX-License-Identifier: Apache-2.0
from .repmlp_resnet import RepMLPResNet
from .repmlpnet import RepMLPNet

__all__ = ["RepMLPNet", "RepMLPResNet"]

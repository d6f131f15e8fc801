# SPDX-License-Identifier: Apache-2.0
from .repmlp_resnet import RepMLPResNet
from .repmlpnet import RepMLPNet
from .repopt_vgg import RepOptVGG

__all__ = ["RepMLPNet", "RepMLPResNet", "RepOptVGG"]

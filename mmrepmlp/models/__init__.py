# SPDX-License-Identifier: Apache-2.0
from .cifar_resnet import CIFARResNet
from .convs import ACBConv2d, DBBConv2d, ReparameterizableConv2d, RepVGGConv2d
from .deploy_form import DeployForm
from .images import image_channels, image_size
from .parallel_norm import ParallelBatchNorm2d
from .repmlp_resnet import RepMLPResNet, RepMLPv1Block
from .repmlpnet import RepMLPBlock, RepMLPNet, RepMLPNetUnit
from .repopt_vgg import RepOptVGG

__all__ = [
    "ACBConv2d",
    "CIFARResNet",
    "DBBConv2d",
    "DeployForm",
    "ParallelBatchNorm2d",
    "RepMLPBlock",
    "RepMLPNet",
    "RepMLPNetUnit",
    "RepMLPResNet",
    "RepMLPv1Block",
    "RepOptVGG",
    "RepVGGConv2d",
    "ReparameterizableConv2d",
    "image_channels",
    "image_size",
]

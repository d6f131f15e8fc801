# SPDX-License-Identifier: Apache-2.0
from torch import nn
from torch.nn.modules.conv import _ConvNd


def image_channels(model: nn.Module) -> int:
    """Number of image channels that a model's backbone was built for: of its first convolution, or 3 if it has none.

    Args:
        model: A classifier, segmentor or detector, or a bare backbone.
    """
    backbone = getattr(model, "backbone", model)
    channels = getattr(backbone, "in_channels", None)
    if isinstance(channels, int):
        return channels
    return next((module.in_channels for module in backbone.modules() if isinstance(module, _ConvNd)), 3)

# SPDX-License-Identifier: Apache-2.0
"""Which images a model takes."""

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def image_size(model: nn.Module) -> tuple[int, int]:
    """Height and width in pixels that a model was built for: the first ``img_size`` in it; 224 if there is none."""
    size = next((part.img_size for part in model.modules() if hasattr(part, "img_size")), 224)
    return (size, size) if isinstance(size, int) else tuple(size)


def image_channels(model: nn.Module) -> int:
    """Number of image channels that a model takes: as many as its data preprocessor normalizes; where that does not
    normalize, those of the first convolution in the backbone; 3 if there is none."""
    mean = getattr(getattr(model, "data_preprocessor", None), "mean", None)
    if isinstance(mean, Tensor):
        return mean.numel()
    backbone = getattr(model, "backbone", model)
    return next((layer.in_channels for layer in backbone.modules() if isinstance(layer, _ConvNd)), 3)

# SPDX-License-Identifier: Apache-2.0
"""The size and the channels of the images that a model takes."""

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def image_size(model: nn.Module) -> tuple[int, int]:
    """Return the image size (height, width) in pixels that a model was built for.

    It is the first ``img_size`` of a module in the model, or 224 if there is none.
    """
    size = next((part.img_size for part in model.modules() if hasattr(part, "img_size")), 224)
    return (size, size) if isinstance(size, int) else tuple(size)


def image_channels(model: nn.Module) -> int:
    """Return the number of image channels that a model takes.

    It is the number that the data preprocessor normalizes; if that does not normalize, the number of input channels of
    the first convolution in the backbone; 3 if there is none.
    """
    mean = getattr(getattr(model, "data_preprocessor", None), "mean", None)
    if isinstance(mean, Tensor):
        return mean.numel()
    backbone = getattr(model, "backbone", model)
    return next((layer.in_channels for layer in backbone.modules() if isinstance(layer, _ConvNd)), 3)

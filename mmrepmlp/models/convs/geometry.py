# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """Kernel size, stride, padding and dilation of a convolution, pairs of height and width in pixels."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]  # zeros around the feature map, which negative numbers crop
    dilation: tuple[int, int]

    def middle(self, *kernel_size: int) -> "Geometry":
        """Return the geometry of a smaller kernel in the middle of this one, with the same number of outputs."""
        margins = [(whole - part) // 2 for whole, part in zip(self.kernel_size, kernel_size)]
        padding = tuple(p - d * m for p, d, m in zip(self.padding, self.dilation, margins))
        return replace(self, kernel_size=kernel_size, padding=padding)

    @property
    def zeros(self) -> tuple[int, int]:
        """Zero padding around the feature map."""
        return max(self.padding[0], 0), max(self.padding[1], 0)

    def crop(self, x: Tensor) -> Tensor:
        """Crop a feature map (N, C, H, W) by negative padding."""
        return pad(x, (min(self.padding[0], 0), min(self.padding[1], 0)))


def pad(x: Tensor, padding: tuple[int, int]) -> Tensor:
    """Pad a feature map with zeros, or crop it, by (rows, columns) on each side."""
    height, width = padding
    return F.pad(x, (width, width, height, height)) if height or width else x

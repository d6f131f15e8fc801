# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """Where a convolution looks: pairs of height and width in pixels."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]  # zeros around the map; negative ones are cropped
    dilation: tuple[int, int]

    def middle(self, *kernel_size: int) -> "Geometry":
        """A smaller kernel in the middle of this one, with the same outputs."""
        margins = [(whole - part) // 2 for whole, part in zip(self.kernel_size, kernel_size)]
        padding = tuple(p - d * m for p, d, m in zip(self.padding, self.dilation, margins))
        return replace(self, kernel_size=kernel_size, padding=padding)

    @property
    def zeros(self) -> tuple[int, int]:
        """Pixels of zeros around the map."""
        return max(self.padding[0], 0), max(self.padding[1], 0)

    def crop(self, x: Tensor) -> Tensor:
        """Remove what negative padding takes away from a map (N, C, H, W)."""
        return pad(x, (min(self.padding[0], 0), min(self.padding[1], 0)))


def pad(x: Tensor, padding: tuple[int, int]) -> Tensor:
    """Pad a map by zeros, or crop it: pixels above and below, left and right."""
    height, width = padding
    return F.pad(x, (width, width, height, height)) if height or width else x

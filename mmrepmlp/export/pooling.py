# SPDX-License-Identifier: Apache-2.0
"""Adaptive average pooling that can be exported at any size."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def make_pooling_exportable(model: nn.Module) -> Iterator[None]:
    """Replace a model's adaptive average pooling during an export.

    UperNet pools to 1, 2, 3 and 6 pixels a side; ONNX has no operator for bins of unequal size, nor for symbolic sizes.
    """
    replaced = []
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size not in (1, (1, 1)):
                replaced.append((parent, name, child))
    try:
        for parent, name, pool in replaced:
            setattr(parent, name, MatrixPool2d(pool.output_size))
        yield
    finally:
        for parent, name, pool in replaced:
            setattr(parent, name, pool)


class MatrixPool2d(nn.Module):
    """Adaptive average pooling as two matrix products, one for each side.

    Args:
        output_size: Height and width of the output in pixels, or one number for both; None keeps a side.
    """

    def __init__(self, output_size: int | tuple[int | None, int | None] | None) -> None:
        super().__init__()
        pair = output_size if isinstance(output_size, tuple) else (output_size, output_size)
        self.height, self.width = pair

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, height, width)."""
        if self.height is not None:
            x = averaging_matrix(x.size(2), self.height, x) @ x
        if self.width is not None:
            x = x @ averaging_matrix(x.size(3), self.width, x).T
        return x


def averaging_matrix(size: int, bins: int, like: Tensor) -> Tensor:
    """The matrix (bins, size) that averages a row of pixels over torch's bins: bin i covers the pixels from
    floor(i * size / bins) up to, not including, ceil((i + 1) * size / bins)."""
    pixels = torch.arange(size, device=like.device)
    bin_ = torch.arange(bins, device=like.device)[:, None]
    total = torch.scalar_tensor(size, dtype=torch.int64, device=like.device)
    start, end = bin_ * total // bins, ((bin_ + 1) * total + bins - 1) // bins
    inside = ((pixels >= start) & (pixels < end)).to(like.dtype)
    return inside / (end - start)

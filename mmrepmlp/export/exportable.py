# SPDX-License-Identifier: Apache-2.0
"""Replace layers that exporters do not support."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize
from torch.ao.quantization.fx import _decomposed  # noqa: F401, registers the operators below

quantized = torch.ops.quantized_decomposed


@contextmanager
def make_exportable(model: nn.Module) -> Iterator[None]:
    """Replace adaptive average pooling and the quantizers of inputs in a model during an export.

    UperNet pools to 1, 2, 3 and 6 pixels a side; ONNX has no operator for bins of unequal size, nor for symbolic sizes.
    """
    children = [(parent, *child) for parent in model.modules() for child in parent.named_children()]
    try:
        for parent, name, child in children:
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size not in (1, (1, 1)):
                setattr(parent, name, MatrixPool2d(child.output_size))
            elif isinstance(child, FakeQuantize):
                setattr(parent, name, FixedRange(child))
        yield
    finally:
        for parent, name, child in children:
            setattr(parent, name, child)


class FixedRange(nn.Module):
    """A quantizer whose current range is constant: exporters support its operators only with numbers."""

    def __init__(self, quantizer: FakeQuantize) -> None:
        super().__init__()
        scale, zero_point = (number.item() for number in quantizer.calculate_qparams())
        self.arguments = (scale, int(zero_point), quantizer.quant_min, quantizer.quant_max, torch.uint8)

    def forward(self, x: Tensor) -> Tensor:
        """Round a tensor of any shape."""
        return quantized.dequantize_per_tensor(quantized.quantize_per_tensor(x, *self.arguments), *self.arguments)


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
    """Return the matrix (bins, size) that averages a row of pixels over torch's bins: bin i covers the pixels from
    floor(i * size / bins) up to, not including, ceil((i + 1) * size / bins)."""
    pixels = torch.arange(size, device=like.device)
    bin_ = torch.arange(bins, device=like.device)[:, None]
    total = torch.scalar_tensor(size, dtype=torch.int64, device=like.device)
    start, end = bin_ * total // bins, ((bin_ + 1) * total + bins - 1) // bins
    inside = ((pixels >= start) & (pixels < end)).to(like.dtype)
    return inside / (end - start)

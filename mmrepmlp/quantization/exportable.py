# SPDX-License-Identifier: Apache-2.0
"""Fake quantization that an exporter can record."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize
from torch.ao.quantization.fx import _decomposed  # noqa: F401, registers the operators below

from .aware import QuantizedRepMLPNet

quantized = torch.ops.quantized_decomposed


def is_quantized(model: nn.Module) -> bool:
    """Whether a part of a model rounds as it was trained to."""
    return any(isinstance(module, QuantizedRepMLPNet) and module.fake_quantization for module in model.modules())


@contextmanager
def make_quantizers_exportable(model: nn.Module) -> Iterator[None]:
    """Replace the input quantizers of a model by their present ranges, as numbers, for the time of an export.

    Exporters know quantization by these operators alone, and their scale and zero point as numbers alone.
    """
    networks = [module for module in model.modules() if isinstance(module, QuantizedRepMLPNet)]
    originals = [network.quantizers for network in networks]
    try:
        for network in networks:
            fixed = {key: FixedRange.of(quantizer) for key, quantizer in network.quantizers.items()}
            network.quantizers = nn.ModuleDict(fixed)
        yield
    finally:
        for network, quantizers in zip(networks, originals):
            network.quantizers = quantizers


class FixedRange(nn.Module):
    """Rounds to levels of a range that no longer changes.

    Args:
        scale: Distance of two levels.
        zero_point: The level of zero.
        quant_min: The lowest level.
        quant_max: The highest level.
    """

    def __init__(self, scale: float, zero_point: int, quant_min: int, quant_max: int) -> None:
        super().__init__()
        self.arguments = (scale, zero_point, quant_min, quant_max, torch.uint8)

    @classmethod
    def of(cls, quantizer: FakeQuantize) -> "FixedRange":
        """The range that a quantizer has now."""
        scale, zero_point = quantizer.calculate_qparams()
        return cls(scale.item(), int(zero_point.item()), quantizer.quant_min, quantizer.quant_max)

    def forward(self, x: Tensor) -> Tensor:
        """Round a tensor of any shape."""
        return quantized.dequantize_per_tensor(quantized.quantize_per_tensor(x, *self.arguments), *self.arguments)

# SPDX-License-Identifier: Apache-2.0
"""The levels that numbers are rounded to, in training and in exported graphs."""

import torch
from torch import Tensor
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver, PerChannelMinMaxObserver

WEIGHT_LEVEL = 127  # the highest; the lowest is its negative, so that zero is in the middle


def input_quantizer() -> FakeQuantize:
    """Make a quantizer that rounds to 256 levels between moving averages of the extremes."""
    return FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8)


def round_weight(weight: Tensor) -> Tensor:
    """Round a weight (O, ...) to whole multiples of a step for each output: its largest value over 127."""
    quantizer = FakeQuantize(
        PerChannelMinMaxObserver,
        quant_min=-WEIGHT_LEVEL,
        quant_max=WEIGHT_LEVEL,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )
    return quantizer.to(weight.device)(weight)

# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training, with torch only. Exported graphs are quantized in ``mmrepmlp.export``."""

from .aware import QuantizedRepMLPNet
from .insert_bn import collect_statistics, insert_bn

__all__ = ["QuantizedRepMLPNet", "collect_statistics", "insert_bn"]

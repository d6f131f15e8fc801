# SPDX-License-Identifier: Apache-2.0
"""int8 in training; torch only. What quantizes exported graphs after training is in ``mmrepmlp.export``."""

from .aware import QuantizedRepMLPNet
from .insert_bn import collect_statistics, insert_bn

__all__ = ["QuantizedRepMLPNet", "collect_statistics", "insert_bn"]

# SPDX-License-Identifier: Apache-2.0
"""int8 in training. What quantizes exported graphs, ``mmrepmlp.quantization.static``, needs ONNX Runtime."""

from .aware import QuantizedRepMLPNet
from .statistics import collect_statistics, insert_bn

__all__ = ["QuantizedRepMLPNet", "collect_statistics", "insert_bn"]

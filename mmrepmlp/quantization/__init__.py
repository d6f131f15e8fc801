# SPDX-License-Identifier: Apache-2.0
from .static import quantize_onnx, rank_nodes

__all__ = ["quantize_onnx", "rank_nodes"]

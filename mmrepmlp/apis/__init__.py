# SPDX-License-Identifier: Apache-2.0
from .benchmark_repmlpnet import benchmark_repmlpnet
from .benchmark_sizes import benchmark_sizes
from .compare import Comparison, compare_forms
from .picture import draw_predictions
from .reparameterize import ConversionError, ConversionReport, reparameterize_checkpoint
from .run import test, train

__all__ = [
    "Comparison",
    "ConversionError",
    "ConversionReport",
    "benchmark_repmlpnet",
    "benchmark_sizes",
    "compare_forms",
    "draw_predictions",
    "reparameterize_checkpoint",
    "test",
    "train",
]

# SPDX-License-Identifier: Apache-2.0
from .benchmark_repmlpnet import benchmark_repmlpnet
from .benchmark_sizes import benchmark_sizes
from .compare import Comparison, compare_forms
from .official import mmrepmlp_to_official, official_to_mmrepmlp
from .picture import draw_predictions
from .reparameterize import ConversionError, reparameterize_checkpoint
from .report import ConversionReport
from .run import test, train

__all__ = [
    "Comparison",
    "ConversionError",
    "ConversionReport",
    "benchmark_repmlpnet",
    "benchmark_sizes",
    "compare_forms",
    "draw_predictions",
    "mmrepmlp_to_official",
    "official_to_mmrepmlp",
    "reparameterize_checkpoint",
    "test",
    "train",
]

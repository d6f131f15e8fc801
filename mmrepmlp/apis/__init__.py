# SPDX-License-Identifier: Apache-2.0
from .benchmark_parts import benchmark_parts
from .benchmark_repmlpnet import benchmark_repmlpnet
from .benchmark_sizes import benchmark_sizes
from .compare import Comparison, compare_forms
from .official import mmrepmlp_to_official, official_to_mmrepmlp
from .picture import draw_predictions
from .publish import Publication, publish_checkpoint
from .reparameterize import ConversionError, reparameterize_checkpoint
from .report import ConversionReport
from .run import test, train

__all__ = [
    "Comparison",
    "ConversionError",
    "ConversionReport",
    "Publication",
    "benchmark_parts",
    "benchmark_repmlpnet",
    "benchmark_sizes",
    "compare_forms",
    "draw_predictions",
    "mmrepmlp_to_official",
    "official_to_mmrepmlp",
    "publish_checkpoint",
    "reparameterize_checkpoint",
    "test",
    "train",
]

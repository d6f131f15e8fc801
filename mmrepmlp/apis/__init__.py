# SPDX-License-Identifier: Apache-2.0
from .benchmark_repmlpnet import benchmark_repmlpnet
from .compare import Comparison, compare_classifiers
from .reparameterize import ConversionError, ConversionReport, reparameterize_checkpoint
from .run import test, train

__all__ = [
    "Comparison",
    "ConversionError",
    "ConversionReport",
    "benchmark_repmlpnet",
    "compare_classifiers",
    "reparameterize_checkpoint",
    "test",
    "train",
]

# SPDX-License-Identifier: Apache-2.0
from .benchmark_repmlpnet import benchmark_repmlpnet
from .reparameterize import ConversionError, ConversionReport, reparameterize_checkpoint
from .run import test, train

__all__ = ["ConversionError", "ConversionReport", "benchmark_repmlpnet", "reparameterize_checkpoint", "test", "train"]

# SPDX-License-Identifier: Apache-2.0
from .layer_decay import LayerDecayOptimWrapperConstructor
from .rep_optimizer import RepOptimizerConstructor

__all__ = ["LayerDecayOptimWrapperConstructor", "RepOptimizerConstructor"]

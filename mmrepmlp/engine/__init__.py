# SPDX-License-Identifier: Apache-2.0
from .hooks import CheckAnnotationsHook, SwitchToDeployHook
from .optimizers import LayerDecayOptimWrapperConstructor

__all__ = ["CheckAnnotationsHook", "LayerDecayOptimWrapperConstructor", "SwitchToDeployHook"]

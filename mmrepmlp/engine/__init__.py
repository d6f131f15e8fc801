# SPDX-License-Identifier: Apache-2.0
from .distributed import CPUDistributedDataParallel
from .hooks import (
    Bfloat16Hook,
    BroadcastBuffersHook,
    CheckAnnotationsHook,
    CheckLastBatchHook,
    CheckWeightsHook,
    CollectStatisticsHook,
    EpochSeedHook,
    FakeQuantizeHook,
    SwitchToDeployHook,
)
from .optimizers import LayerDecayOptimWrapperConstructor

__all__ = [
    "Bfloat16Hook",
    "BroadcastBuffersHook",
    "CPUDistributedDataParallel",
    "CheckAnnotationsHook",
    "CheckLastBatchHook",
    "CheckWeightsHook",
    "CollectStatisticsHook",
    "EpochSeedHook",
    "FakeQuantizeHook",
    "LayerDecayOptimWrapperConstructor",
    "SwitchToDeployHook",
]

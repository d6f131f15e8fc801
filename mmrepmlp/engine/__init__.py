# SPDX-License-Identifier: Apache-2.0
from .distributed import CPUDistributedDataParallel, ShardedStrategy, shard_units
from .hooks import (
    BroadcastBuffersHook,
    CheckAnnotationsHook,
    CheckWeightsHook,
    CollectStatisticsHook,
    EpochSeedHook,
    FakeQuantizeHook,
    SwitchToDeployHook,
)
from .optimizers import LayerDecayOptimWrapperConstructor

__all__ = [
    "BroadcastBuffersHook",
    "CPUDistributedDataParallel",
    "CheckAnnotationsHook",
    "CheckWeightsHook",
    "CollectStatisticsHook",
    "EpochSeedHook",
    "FakeQuantizeHook",
    "LayerDecayOptimWrapperConstructor",
    "ShardedStrategy",
    "SwitchToDeployHook",
    "shard_units",
]

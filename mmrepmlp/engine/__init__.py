# SPDX-License-Identifier: Apache-2.0
from .distributed import CPUDistributedDataParallel, ShardedStrategy, shard_units
from .hooks import BroadcastBuffersHook, SwitchToDeployHook

__all__ = ["BroadcastBuffersHook", "CPUDistributedDataParallel", "ShardedStrategy", "SwitchToDeployHook", "shard_units"]

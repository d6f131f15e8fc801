# SPDX-License-Identifier: Apache-2.0
from .data_parallel import CPUDistributedDataParallel
from .sharding import ShardedStrategy, shard_units

__all__ = ["CPUDistributedDataParallel", "ShardedStrategy", "shard_units"]

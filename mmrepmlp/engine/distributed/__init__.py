# SPDX-License-Identifier: Apache-2.0
from .data_parallel import CPUDistributedDataParallel

__all__ = ["CPUDistributedDataParallel"]

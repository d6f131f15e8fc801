# SPDX-License-Identifier: Apache-2.0
from .data_parallel import CPUDistributedDataParallel
from .hooks.bfloat16_hook import Bfloat16Hook
from .hooks.broadcast_buffers_hook import BroadcastBuffersHook
from .hooks.check_annotations_hook import CheckAnnotationsHook
from .hooks.check_last_batch_hook import CheckLastBatchHook
from .hooks.check_weights_hook import CheckWeightsHook
from .hooks.collect_statistics_hook import CollectStatisticsHook
from .hooks.epoch_seed_hook import EpochSeedHook
from .hooks.fake_quantize_hook import FakeQuantizeHook
from .hooks.switch_to_deploy_hook import SwitchToDeployHook
from .optimizers.layer_decay import LayerDecayOptimWrapperConstructor
from .optimizers.rep_optimizer import RepOptimizerConstructor

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
    "RepOptimizerConstructor",
    "SwitchToDeployHook",
]

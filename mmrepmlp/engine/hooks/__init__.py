# SPDX-License-Identifier: Apache-2.0
from .bfloat16_hook import Bfloat16Hook
from .broadcast_buffers_hook import BroadcastBuffersHook
from .check_annotations_hook import CheckAnnotationsHook
from .check_last_batch_hook import CheckLastBatchHook
from .check_weights_hook import CheckWeightsHook
from .collect_statistics_hook import CollectStatisticsHook
from .epoch_seed_hook import EpochSeedHook
from .fake_quantize_hook import FakeQuantizeHook
from .switch_to_deploy_hook import SwitchToDeployHook

__all__ = [
    "Bfloat16Hook",
    "BroadcastBuffersHook",
    "CheckAnnotationsHook",
    "CheckLastBatchHook",
    "CheckWeightsHook",
    "CollectStatisticsHook",
    "EpochSeedHook",
    "FakeQuantizeHook",
    "SwitchToDeployHook",
]

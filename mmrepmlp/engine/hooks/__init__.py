# SPDX-License-Identifier: Apache-2.0
from .broadcast_buffers_hook import BroadcastBuffersHook
from .switch_to_deploy_hook import SwitchToDeployHook

__all__ = ["BroadcastBuffersHook", "SwitchToDeployHook"]

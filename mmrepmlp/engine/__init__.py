# SPDX-License-Identifier: Apache-2.0
from .hooks import SwitchToDeployHook

__all__ = ["SwitchToDeployHook"]

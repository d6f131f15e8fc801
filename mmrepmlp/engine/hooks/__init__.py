# SPDX-License-Identifier: Apache-2.0
from .check_annotations_hook import CheckAnnotationsHook
from .switch_to_deploy_hook import SwitchToDeployHook

__all__ = ["CheckAnnotationsHook", "SwitchToDeployHook"]

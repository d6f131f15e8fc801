# SPDX-License-Identifier: Apache-2.0
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmrepmlp.engine.bfloat16 import compute_in_bfloat16
from mmrepmlp.registry import HOOKS

from .switch_to_deploy_hook import get_model, set_model


@HOOKS.register_module()
class Bfloat16Hook(Hook):
    """Test a model with its networks in bfloat16."""

    # After SwitchToDeployHook, which fuses in the precision of the checkpoint.
    priority = "VERY_LOW"

    def before_test_epoch(self, runner: Runner) -> None:
        """Replace the runner's model by a copy that computes in bfloat16."""
        set_model(runner, compute_in_bfloat16(get_model(runner)))

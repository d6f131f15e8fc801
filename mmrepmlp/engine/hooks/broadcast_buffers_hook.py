# SPDX-License-Identifier: Apache-2.0
from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmrepmlp.registry import HOOKS


@HOOKS.register_module()
class BroadcastBuffersHook(Hook):
    """Broadcast the buffers of process 0 before validation, so that the metrics are those of the saved checkpoint.

    Each process updates its own batch norm statistics, and only those of process 0 are saved.
    """

    # After hooks that swap weights before an epoch, and before SwitchToDeployHook, which fuses the statistics.
    priority = "BELOW_NORMAL"

    def before_val_epoch(self, runner: Runner) -> None:
        """Send all buffers of the model from process 0 to the others."""
        for buffer in runner.model.buffers():
            broadcast(buffer)

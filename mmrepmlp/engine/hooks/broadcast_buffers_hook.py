# SPDX-License-Identifier: Apache-2.0
from mmengine.dist import broadcast
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmrepmlp.registry import HOOKS


@HOOKS.register_module()
class BroadcastBuffersHook(Hook):
    """Validate the model that is saved: each process counts its own batch norm statistics, the first one's are saved.

    Before a validation all processes take the first one's, so that the metrics are those of the checkpoint.
    """

    # After hooks that exchange weights before an epoch, and before SwitchToDeployHook, which folds the statistics.
    priority = "BELOW_NORMAL"

    def before_val_epoch(self, runner: Runner) -> None:
        """Send all buffers of the model from process 0 to the others."""
        for buffer in runner.model.buffers():
            broadcast(buffer)

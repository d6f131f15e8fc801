# SPDX-License-Identifier: Apache-2.0
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmrepmlp.checkpoint import unwrap
from mmrepmlp.registry import HOOKS


@HOOKS.register_module()
class CheckWeightsHook(Hook):
    """Stop a run whose checkpoint holds no weights, or several and none under a usual name.

    MMEngine warns of every tensor that is missing, and goes on with random weights.
    """

    priority = "LOWEST"  # after hooks that choose among the weights

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Look for the weights.

        Raises:
            ValueError: They are not found; the message lists the entries of the checkpoint.
        """
        unwrap(checkpoint)

# SPDX-License-Identifier: Apache-2.0
from collections.abc import Mapping

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmrepmlp.checkpoint import to_classifier_names, unwrap
from mmrepmlp.registry import HOOKS


@HOOKS.register_module()
class CheckWeightsHook(Hook):
    """Find the weights of a run, whoever wrote them; stop it where there are none, or several of no usual name.

    MMEngine looks under ``state_dict`` and for the model's own names, warns of every tensor that is missing, and goes
    on with random weights. What wrappers put in front of the names, such as Lightning's ``model.``, is removed.
    """

    priority = "LOWEST"  # after hooks that choose among the weights

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Put the weights where MMEngine looks for them.

        Raises:
            ValueError: They are not found; the message lists the entries of the checkpoint.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        state = to_classifier_names(unwrap(checkpoint), model.state_dict())
        loaded = checkpoint.get("state_dict", checkpoint)
        if not isinstance(loaded, Mapping) or loaded.keys() != state.keys():
            checkpoint["state_dict"] = state

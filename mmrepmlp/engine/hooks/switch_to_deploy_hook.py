# SPDX-License-Identifier: Apache-2.0
import copy
from types import MethodType

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils._pytree import tree_leaves

from mmrepmlp.registry import HOOKS
from mmrepmlp.reparam import convertible_modules, switch_to_deploy


@HOOKS.register_module()
class SwitchToDeployHook(Hook):
    """Evaluate a model in its deploy form.

    A test run converts the runner's model before the first batch. A validation run, with ``val=True``, uses a converted
    copy, and training continues in training form. Weights that another hook swaps in for the evaluation, such as the
    averages of :class:`mmengine.hooks.EMAHook`, are converted.

    Args:
        val: Whether to convert for validation as well. Default: False.
    """

    # After the hooks that swap weights before an epoch, and before the checkpoint is saved at its end.
    priority = "LOW"

    def __init__(self, val: bool = False) -> None:
        self.val = val
        self.training_form: nn.Module | None = None

    def before_test_epoch(self, runner: Runner) -> None:
        """Replace the runner's model by its deploy form."""
        set_model(runner, switch_to_deploy(copy.deepcopy(get_model(runner))))

    def before_val_epoch(self, runner: Runner) -> None:
        """Replace the runner's model by a converted copy."""
        if self.val:
            self.training_form = get_model(runner)
            set_model(runner, deployed_copy(self.training_form))

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Restore the model in training form."""
        if self.val:
            set_model(runner, self.training_form)
            self.training_form = None


def deployed_copy(model: nn.Module) -> nn.Module:
    """Convert a copy: other hooks keep references to the runner's model and swap its weights after the evaluation.

    Modules that are not converted are shared with the model, and so are the attributes of modules around converted
    ones: they may be tensors of the last iteration's graph, which cannot be copied.
    """
    parts = set(convertible_modules(model).values())
    inside = {module for part in parts for module in part.modules()}
    outside = [module for module in model.modules() if module not in inside]
    around = [module for module in outside if not parts.isdisjoint(module.modules())]
    shared = [module for module in outside if module not in around]
    shared += [value for module in around for value in vars(module).values() if not holds_modules(value)]
    return switch_to_deploy(copy.deepcopy(model, {id(part): part for part in shared}))


def holds_modules(value: object) -> bool:
    """Whether an attribute is or contains a module, or a method of one."""
    return any(isinstance(leaf, (nn.Module, MethodType)) for leaf in tree_leaves(value))


def get_model(runner: Runner) -> nn.Module:
    """Return the runner's model without a distributed wrapper."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def set_model(runner: Runner, model: nn.Module) -> None:
    """Replace the runner's model, inside the distributed wrapper if there is one."""
    if is_model_wrapper(runner.model):
        runner.model.module = model
    else:
        runner.model = model

# SPDX-License-Identifier: Apache-2.0
from itertools import chain

from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from mmrepmlp.checkpoint import abbreviate, check_state_dict, fit_names, load_weights, needed, raise_faults, unwrap
from mmrepmlp.registry import HOOKS


@HOOKS.register_module()
class CheckWeightsHook(Hook):
    """Find the weights of a run, whoever wrote them, and say what is not loaded.

    MMEngine looks under ``state_dict`` and for the model's own names, prints which tensors are missing, and goes on
    with random weights. What wrappers put in front of the names, such as Lightning's ``model.``, is removed. A test
    stops where the model lacks weights, a resumed training where the optimizer would not fit them; a training that
    begins warns.
    """

    priority = "LOWEST"  # after hooks that choose among the weights

    def __init__(self) -> None:
        self.faults: dict[str, list[str]] = {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Load the weights; MMEngine gets them under the model's names."""
        model, state = without_wrappers(runner.model), unwrap(checkpoint)
        if is_model_wrapper(model):  # of one that shards, which loads in ways of its own
            checkpoint["state_dict"] = fit_names(state, model.module.state_dict())
            return
        if runner.cfg.get("resume"):
            check_resumable(model, fit_names(state, model.state_dict()))
        self.faults = load_weights(model, state)
        checkpoint["state_dict"] = model.state_dict()
        for hook in runner.hooks:
            if isinstance(hook, EMAHook) and "ema_state_dict" not in checkpoint:  # it looked for the model's own names
                without_wrappers(hook.ema_model.module).load_state_dict(checkpoint["state_dict"])

    def before_train(self, runner: Runner) -> None:
        """Say what keeps its initial values."""
        texts = [f"{kind}: {abbreviate(names)}" for kind, names in self.faults.items() if names]
        if texts:
            runner.logger.warning(
                f"Not all of load_from={runner.cfg.get('load_from')} fits the model. Not loaded are tensors "
                f"{'; '.join(texts)}. What the model lacks keeps its initial values."
            )
        self.faults = {}

    def before_test(self, runner: Runner) -> None:
        """Refuse to evaluate random weights."""
        if self.faults:
            raise_faults(needed(self.faults))
            if left := list(chain(*self.faults.values())):
                runner.logger.info(f"Ignored, of parts that only train: {abbreviate(left)}.")


def without_wrappers(model: nn.Module) -> nn.Module:
    """The model that has the weights: not what runs it in several processes, or merges its predictions."""
    while isinstance(model, (BaseTTAModel, DataParallel, DistributedDataParallel)):
        model = model.module
    return model


def check_resumable(model: nn.Module, state: dict) -> None:
    """Reject a checkpoint without the parameters that the state of its optimizer would be for, naming both shapes."""
    expected = dict(model.named_parameters())
    try:
        check_state_dict(expected, {name: value for name, value in state.items() if name in expected})
    except ValueError as error:
        raise ValueError(
            f"{error} Resume with the config it was trained with, or start a training from its weights: --cfg-options "
            "load_from=..., without --resume."
        ) from error

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
    """Load the weights of a run from checkpoints of any origin, and report what is not loaded.

    MMEngine looks under ``state_dict`` and for the model's own names, prints which tensors are missing, and continues
    with random weights. This hook removes prefixes of wrappers from the names, such as Lightning's ``model.``. A test
    stops if the model lacks weights, and a resumed training if the state of the optimizer would not fit them; a new
    training warns.
    """

    priority = "LOWEST"  # after hooks that choose among the weights

    def __init__(self) -> None:
        self.faults: dict[str, list[str]] = {}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Load the weights, and put them under the model's names for MMEngine."""
        model, state = without_wrappers(runner.model), unwrap(checkpoint)
        if is_model_wrapper(model):  # one that shards weights, and loads them in its own way
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
        """Warn about weights that keep their initial values."""
        texts = [f"{kind}: {abbreviate(names)}" for kind, names in self.faults.items() if names]
        if texts:
            runner.logger.warning(
                f"load_from={runner.cfg.get('load_from')} does not fit the whole model. Tensors "
                f"{'; '.join(texts)}. Weights of the model that are not loaded keep their initial values."
            )
        self.faults = {}

    def before_test(self, runner: Runner) -> None:
        """Refuse to evaluate random weights."""
        if self.faults:
            raise_faults(needed(self.faults))
            if left := list(chain(*self.faults.values())):
                runner.logger.info(f"Ignored, since only training uses them: {abbreviate(left)}.")


def without_wrappers(model: nn.Module) -> nn.Module:
    """Return the model inside wrappers for several processes or test-time augmentation."""
    while isinstance(model, (BaseTTAModel, DataParallel, DistributedDataParallel)):
        model = model.module
    return model


def check_resumable(model: nn.Module, state: dict) -> None:
    """Reject a checkpoint whose parameters do not fit the model, since the state of its optimizer would not either."""
    expected = dict(model.named_parameters())
    try:
        check_state_dict(expected, {name: value for name, value in state.items() if name in expected})
    except ValueError as error:
        raise ValueError(
            f"{error} Resume with the config it was trained with, or start a training from its weights: --cfg-options "
            "load_from=..., without --resume."
        ) from error

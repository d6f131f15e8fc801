# SPDX-License-Identifier: Apache-2.0
"""The base class of the hooks that change gradients, and functions that they share."""

import copy
import warnings
from array import array
from collections.abc import Iterable, Mapping
from types import SimpleNamespace

import torch
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer

from mmrepmlp.compression.groups import CompressionError
from mmrepmlp.engine.optimizers.reparameterized import ReparameterizedAdamW

DECOUPLED = ("AdamW",)  # optimizers that apply weight decay separately from the gradient


class GradientHook(Hook):
    """Base class of hooks that change gradients before each step of the optimizer.

    The hook runs after everything else that changes gradients (accumulation, the average over processes, unscaling,
    clipping), and before the optimizer's decay and momentum, with any optimizer. Checkpoints include the state of a
    subclass.
    """

    def __init__(self) -> None:
        self.loaded: dict | None = None

    def before_train(self, runner: Runner) -> None:
        """Prepare, and register the hook with the optimizer.

        Raises:
            CompressionError: The config has several optimizers, the optimizer is fused in float16, or the checkpoint to
                resume from has no state of this hook.
        """
        wrapper = runner.optim_wrapper
        if not hasattr(wrapper, "optimizer"):
            raise CompressionError(f"{type(self).__name__} needs a single optimizer; the config has several.")
        fused = any(group.get("fused") for group in wrapper.param_groups)
        if fused and isinstance(wrapper, AmpOptimWrapper) and wrapper.loss_scaler.is_enabled():
            raise CompressionError(
                f"{type(self).__name__} does not work with a fused optimizer in float16, which unscales gradients "
                "inside of its step. Leave out fused=True, or train with dtype='bfloat16'."
            )
        resumed = runner.iter > 0
        if resumed and self.loaded is None:
            raise CompressionError(
                f"The training is resumed from a checkpoint without the state of {type(self).__name__}. Start from its "
                "weights instead (load_from)."
            )
        self.prepare(runner, self.loaded if resumed else None)
        wrapper.optimizer.register_step_pre_hook(self.enter_step)

    def enter_step(self, optimizer: Optimizer, args: tuple, settings: dict) -> None:
        """Run :meth:`before_step`, as a hook of the optimizer."""
        with torch.no_grad():
            self.before_step(optimizer)

    def prepare(self, runner: Runner, state: dict | None) -> None:
        """Prepare for training.

        Args:
            runner: The runner; its model has its weights, and its optimizer and schedulers are built.
            state: The :meth:`state` in the checkpoint that training is resumed from; None for a new training.
        """

    def before_step(self, optimizer: Optimizer) -> None:
        """Change the gradients."""
        raise NotImplementedError

    def state(self) -> dict:
        """Return what resuming and conversion need: numbers, lists and tensors by name."""
        return {}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the state, under ``compression`` and the name of the hook."""
        checkpoint.setdefault("compression", {})[type(self).__name__] = self.state()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the state until the training begins."""
        self.loaded = checkpoint.get("compression", {}).get(type(self).__name__)


def groups_of(optimizer: Optimizer) -> dict[nn.Parameter, dict]:
    """Return the parameter group of each parameter."""
    return {parameter: group for group in optimizer.param_groups for parameter in group["params"]}


def refuse_split_weights(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Reject weights whose parts the optimizer updates separately, so that more than their gradient counts.

    Raises:
        CompressionError: One of the parameters is re-parameterized, and the optimizer is AdamW.
    """
    if isinstance(optimizer, ReparameterizedAdamW):
        split = {weight.parameter(optimizer): weight.name for weight in optimizer.weights}
        for parameter in parameters:
            if parameter in split:
                raise CompressionError(
                    f"AdamW updates the parts of the sum that {split[parameter]} stands for separately, so that more "
                    "than its gradient counts. Train with SGD, or leave the layer out (layers)."
                )


def is_decoupled(optimizer: Optimizer) -> bool:
    """Whether an optimizer applies weight decay separately from the gradient, whose size does not matter then.

    Raises:
        CompressionError: It is neither SGD nor AdamW, nor a subclass of these.
    """
    kinds = [kind.__name__ for kind in type(optimizer).__mro__]
    if not {"SGD", *DECOUPLED} & set(kinds):
        raise CompressionError(f"optimizer type={kinds[0]}: expected SGD or AdamW, whose rates of decay are known.")
    return any(kind in DECOUPLED for kind in kinds)


def shrinkage(runner: Runner, strengths: Mapping[nn.Parameter, float]) -> dict[nn.Parameter, float]:
    """Compute the power of e by which a pull shrinks each parameter over the rest of training, without a gradient.

    Args:
        runner: The runner, with its optimizer and schedulers.
        strengths: Strength of the pull on each parameter: the pull adds the parameter times this to its gradient.
    """
    optimizer, groups = runner.optim_wrapper.optimizer, groups_of(runner.optim_wrapper.optimizer)
    indices = {parameter: i for i, group in enumerate(optimizer.param_groups) for parameter in group["params"]}
    rates = learning_rates(runner)
    return {
        parameter: -log_rates(
            rates[indices[parameter]] * strength,
            0.0 if is_decoupled(optimizer) else groups[parameter].get("momentum", 0.0),
            groups[parameter].get("nesterov", False),
        )
        .sum()
        .item()
        for parameter, strength in strengths.items()
    }


def log_rates(pulls: Tensor, momentum: float, nesterov: bool) -> Tensor:
    """Compute the logarithm of the factor by which each step shrinks a parameter: of the larger root of the recurrence.

    It is about ``-pull / (1 - momentum)`` for a small pull; with momentum, no pull shrinks by more than
    ``sqrt(momentum)``.

    Args:
        pulls: Learning rate times strength in each step.
        momentum: Momentum of SGD.
        nesterov: Whether it is Nesterov momentum.
    """
    left = 1 - pulls if nesterov else torch.ones_like(pulls)
    linear, constant = (1 + momentum) * left - (0 if nesterov else pulls), momentum * left
    discriminant = linear**2 - 4 * constant
    real = (linear.abs() + discriminant.clamp(min=0).sqrt()) / 2
    return torch.where(discriminant >= 0, real, constant.clamp(min=0).sqrt()).clamp(min=1e-300).log()


def iterations_per_step(runner: Runner) -> int:
    """Return the number of iterations whose gradients are accumulated for a step of the optimizer."""
    return getattr(runner.optim_wrapper, "_accumulative_counts", 1)  # which has no public name


def learning_rates(runner: Runner) -> list[Tensor]:
    """Compute the learning rates of each parameter group in all remaining steps, as the schedulers will set them.

    Groups that begin with the same values share their rates.

    Returns:
        For each group, float64 of shape (steps,).
    """
    settings = [
        {name: value for name, value in g.items() if name != "params"} for g in runner.optim_wrapper.param_groups
    ]
    schedulers = [s for s in runner.param_schedulers or [] if not getattr(s, "need_val_args", False)]
    starts = [(g["lr"], g.get("initial_lr"), *(s.base_values[i] for s in schedulers)) for i, g in enumerate(settings)]
    first = {start: starts.index(start) for start in starts}
    stand_in = SimpleNamespace(param_groups=[settings[index] for index in first.values()], step=lambda: None)
    copies = [copy.copy(scheduler) for scheduler in schedulers]
    for scheduler in copies:
        scheduler.optimizer = stand_in
        scheduler.base_values = [scheduler.base_values[index] for index in first.values()]
    rates, epoch, accumulated = [array("d") for _ in first], len(runner.train_dataloader), iterations_per_step(runner)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # schedulers warn about steps without those of an optimizer
        for iteration in range(runner.iter + 1, runner.max_iters + 1):
            if iteration % accumulated == 0 or iteration == runner.max_iters:
                for series, group in zip(rates, stand_in.param_groups):
                    series.append(group["lr"])
            for scheduler in copies:
                if not scheduler.by_epoch or iteration % epoch == 0:
                    scheduler.step()
    found = dict(zip(first, (torch.tensor(series, dtype=torch.float64) for series in rates)))
    return [found[start] for start in starts]

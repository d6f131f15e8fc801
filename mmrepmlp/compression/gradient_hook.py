# SPDX-License-Identifier: Apache-2.0
"""What the hooks that change gradients share."""

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

DECOUPLED = ("AdamW",)  # whose decay is beside the gradient


class GradientHook(Hook):
    """Change gradients before each step of the optimizer.

    The hook runs behind everything that happens to gradients (accumulation, the average over processes, unscaling,
    clipping), and before the optimizer's decay and momentum, whatever optimizer the config has. What a subclass keeps
    is part of the checkpoint.
    """

    def __init__(self) -> None:
        self.loaded: dict | None = None

    def before_train(self, runner: Runner) -> None:
        """Prepare, and follow the optimizer."""
        wrapper = runner.optim_wrapper
        if not hasattr(wrapper, "optimizer"):
            raise CompressionError(f"{type(self).__name__} needs a single optimizer; the config has several.")
        fused = any(group.get("fused") for group in wrapper.param_groups)
        if fused and isinstance(wrapper, AmpOptimWrapper) and wrapper.loss_scaler.is_enabled():
            raise CompressionError(
                f"{type(self).__name__} cannot follow a fused optimizer in float16, which unscales gradients inside of "
                "its step. Leave out fused=True, or train with dtype='bfloat16'."
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
        """What the optimizer calls before a step."""
        with torch.no_grad():
            self.before_step(optimizer)

    def prepare(self, runner: Runner, state: dict | None) -> None:
        """Get ready for a training.

        Args:
            runner: Its model has its weights, its optimizer and schedulers are built.
            state: What :meth:`state` gave for the checkpoint that the training is resumed from; None for a new one.
        """

    def before_step(self, optimizer: Optimizer) -> None:
        """Change the gradients."""
        raise NotImplementedError

    def state(self) -> dict:
        """What resuming and conversion need: numbers, lists and tensors by name."""
        return {}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the state, under ``compression`` and the name of the hook."""
        checkpoint.setdefault("compression", {})[type(self).__name__] = self.state()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the state until the training begins."""
        self.loaded = checkpoint.get("compression", {}).get(type(self).__name__)


def groups_of(optimizer: Optimizer) -> dict[nn.Parameter, dict]:
    """The group of settings of each parameter."""
    return {parameter: group for group in optimizer.param_groups for parameter in group["params"]}


def refuse_taken_apart(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Refuse weights of which the optimizer moves parts by themselves, whose gradients are not theirs.

    Raises:
        CompressionError: One of the parameters is re-parameterized, and the optimizer is AdamW.
    """
    if isinstance(optimizer, ReparameterizedAdamW):
        apart = {weight.parameter(optimizer): weight.name for weight in optimizer.weights}
        for parameter in parameters:
            if parameter in apart:
                raise CompressionError(
                    f"AdamW moves the parts that {apart[parameter]} stands for one by one, so that a changed gradient "
                    "would not be all that moves it. Train with SGD, or leave the layer out (layers)."
                )


def is_decoupled(optimizer: Optimizer) -> bool:
    """Whether an optimizer decays weights beside the gradient, whose size then does not count.

    Raises:
        CompressionError: It is neither SGD nor AdamW, or one that follows either.
    """
    kinds = [kind.__name__ for kind in type(optimizer).__mro__]
    if not {"SGD", *DECOUPLED} & set(kinds):
        raise CompressionError(f"optimizer type={kinds[0]}: expected SGD or AdamW, whose rates of decay are known.")
    return any(kind in DECOUPLED for kind in kinds)


def shrinkage(runner: Runner, strengths: Mapping[nn.Parameter, float]) -> dict[nn.Parameter, float]:
    """By which power of e a pull alone shrinks what it pulls, over a training.

    Args:
        runner: The training, with its optimizer and schedulers.
        strengths: Strength of the pull on each parameter: its gradient is what is pulled, times this.
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
    """Logarithm of the factor by which each step shrinks what is pulled: of the larger root of the recurrence.

    About ``-pull / (1 - momentum)`` for a small pull; momentum lets no pull shrink faster than ``sqrt(momentum)``.

    Args:
        pulls: Learning rate times strength, of each step.
        momentum: Of SGD.
        nesterov: Whether it is Nesterov's.
    """
    left = 1 - pulls if nesterov else torch.ones_like(pulls)
    linear, constant = (1 + momentum) * left - (0 if nesterov else pulls), momentum * left
    discriminant = linear**2 - 4 * constant
    real = (linear.abs() + discriminant.clamp(min=0).sqrt()) / 2
    return torch.where(discriminant >= 0, real, constant.clamp(min=0).sqrt()).clamp(min=1e-300).log()


def iterations_per_step(runner: Runner) -> int:
    """Over how many iterations gradients are added up for a step of the optimizer."""
    return getattr(runner.optim_wrapper, "_accumulative_counts", 1)  # which has no public name


def learning_rates(runner: Runner) -> list[Tensor]:
    """The learning rates of each parameter group in all steps to come, as the schedulers will set them.

    Groups that begin alike share theirs.

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
        warnings.simplefilter("ignore")  # of steps of a scheduler without those of an optimizer
        for iteration in range(runner.iter + 1, runner.max_iters + 1):
            if iteration % accumulated == 0 or iteration == runner.max_iters:
                for series, group in zip(rates, stand_in.param_groups):
                    series.append(group["lr"])
            for scheduler in copies:
                if not scheduler.by_epoch or iteration % epoch == 0:
                    scheduler.step()
    found = dict(zip(first, (torch.tensor(series, dtype=torch.float64) for series in rates)))
    return [found[start] for start in starts]

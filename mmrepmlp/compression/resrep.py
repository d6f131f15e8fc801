# SPDX-License-Identifier: Apache-2.0
import bisect
import logging
from collections.abc import Sequence

import torch
from mmengine.logging import print_log
from mmengine.registry import MODELS as ROOT
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer

from mmrepmlp.compression.compactor import VANISHED, Compactor, add_compactor, compactors_in, reattach_compactors
from mmrepmlp.compression.gradient_hook import GradientHook, iterations_per_step, learning_rates
from mmrepmlp.compression.groups import CompressionError, find_groups
from mmrepmlp.compression.macs import MacsOfWidths
from mmrepmlp.compression.reduce import remaining_rows
from mmrepmlp.engine.hooks.switch_to_deploy_hook import get_model
from mmrepmlp.models.convs import ReparameterizableConv2d
from mmrepmlp.registry import HOOKS, MODELS

EPOCHS_BEFORE = 5  # before the first masks, as in both published trainings
LARGEST = 1.5  # largest norm of a row when it is masked; rows that have hardly changed have 1


@MODELS.register_module()
def ResRep(model: dict, layers: list[str] | None = None, **settings: object) -> nn.Module:
    """Build a model with compactors for :class:`ResRepHook` (ResRep, ICCV 2021).

    Each layer whose filters may be removed gets a pointwise convolution after its batch norm, which starts as the
    identity. Training can start from any checkpoint of the model without them. The class of the model and its names
    stay the same.

    Args:
        model: Config of the model, looked up in the current default scope.
        layers: Names of the layers whose filters may be removed, or parts of the names between dots. Default: all
            layers that :func:`find_groups` finds.
        **settings: Further arguments of the model, where its config does not set them.

    Returns:
        The model with compactors.

    Raises:
        CompressionError: The model has no such layers, or one of them has branches and no batch norm after it.
    """
    network = ROOT.build({**settings, **model})
    for group in find_groups(network, layers).values():
        last = network.get_submodule(group.last)
        if isinstance(last, ReparameterizableConv2d):
            raise CompressionError(
                f"{group.last} has branches and no batch norm after it for a compactor. Leave it out (layers), or add "
                "a batch norm after it."
            )
        add_compactor(last, group.channels)
    return network


@HOOKS.register_module()
class ResRepHook(GradientHook):
    """ResRep (ICCV 2021): train the compactors of a :func:`ResRep` model until enough of their rows have vanished.

    A penalty pulls every row of every compactor towards zero. Every ``interval`` iterations, the rows with the smallest
    norms are masked until the model without them meets the target: a masked row only follows the penalty and vanishes,
    all others recover by their gradients. ``mmrepmlp reparameterize`` then fuses the compactors into the layers before
    them and removes the filters. The compactors have their own SGD, whose learning rate follows the schedule of the
    config's optimizer, which may be any.

    Args:
        target: Share of the model's multiply-adds to keep. Default: 0.5.
        lasso: Strength of the penalty. Default: 1e-4.
        lr: Initial learning rate of the compactors. Default: 0.01.
        momentum: Momentum of the compactors. Default: 0.99; at 0.9 a row needs ten times as long to vanish.
        start: Iterations before the first masks. Default: None, 5 epochs.
        interval: Iterations between updates of the masks. Default: 200.
        step: Number of additional rows that may be masked in each update. Default: 4.

    Raises:
        ValueError: ``target`` is out of range.
        CompressionError: The model has no compactors, the target cannot be reached, or the schedule leaves rows no time
            to vanish.
    """

    def __init__(
        self,
        target: float = 0.5,
        lasso: float = 1e-4,
        lr: float = 0.01,
        momentum: float = 0.99,
        start: int | None = None,
        interval: int = 200,
        step: int = 4,
    ) -> None:
        super().__init__()
        if not 0 < target < 1:
            raise ValueError(f"target={target}: expected a share above 0 and below 1.")
        self.target, self.lasso, self.lr, self.momentum = target, lasso, lr, momentum
        self.start, self.interval, self.step = start, interval, step

    def before_run(self, runner: Runner) -> None:
        """Restore compactors after norms that the runner has converted (``sync_bn``)."""
        reattach_compactors(get_model(runner))

    def prepare(self, runner: Runner, state: dict | None) -> None:
        """Find the compactors, and measure the cost of the model without their rows."""
        model = get_model(runner)
        self.compactors = compactors_in(model)
        if not self.compactors:
            raise CompressionError(
                f"{type(model).__name__} has no compactors: wrap the model in the config, "
                "model=dict(type='mmrepmlp.ResRep', model=...)."
            )
        groups = {group.last: group for group in find_groups(model).values()}
        self.macs = MacsOfWidths(model, {name: groups[name] for name in self.compactors})
        smallest = self.macs.share(dict.fromkeys(self.compactors, 1))
        if smallest > self.target:
            raise CompressionError(
                f"target={self.target}: with one filter left in each of the {len(self.compactors)} layers, "
                f"{smallest:.3f} of the multiply-adds remain. Set a higher target, or let more layers be narrowed."
            )
        self.buffers = {name: torch.zeros_like(compactor.weight) for name, compactor in self.compactors.items()}
        if state is not None:
            for name, buffer in self.buffers.items():
                buffer.copy_(state["momentum_buffers"][name])
        start = EPOCHS_BEFORE * len(runner.train_dataloader) if self.start is None else self.start
        self.plan(runner, start, resumed=state is not None)

    def plan(self, runner: Runner, start: int, resumed: bool) -> None:
        """Decide when masks are updated: as long as a masked row can still vanish."""
        group = runner.optim_wrapper.param_groups[0]
        initial = group.get("initial_lr", group["lr"])
        rates = (learning_rates(runner)[0] * self.lr / initial).tolist()
        self.rate = lambda: self.lr * group["lr"] / initial
        candidates = range(start, runner.max_iters, self.interval)
        self.accumulated = iterations_per_step(runner)

        def left(iteration: int) -> float:
            steps = max(iteration - runner.iter, 0) // self.accumulated
            return norm_at_end(rates, self.momentum, self.lasso, steps)

        late = bisect.bisect_left(candidates, True, key=lambda i: left(i) >= VANISHED)
        self.updates = candidates[:late]
        if not late and not resumed:
            raise CompressionError(
                f"A row that is masked in iteration {start}, with the first masks, would have a norm of "
                f"{left(start):.1e} at the end of training, and only vanishes below {VANISHED:.0e}. Let the learning "
                "rate end at zero, as CosineAnnealingLR with eta_min=0 does; train longer, start earlier, raise lasso "
                "or lr, or lower momentum, with which rows oscillate around zero for about 20 / (1 - momentum) "
                "iterations."
            )
        self.runner_iter = lambda: runner.iter

    def before_step(self, optimizer: Optimizer) -> None:
        """Update masks when it is time to, then the compactors, which the optimizer skips."""
        now = self.runner_iter()
        if any(iteration in self.updates for iteration in range(now - self.accumulated + 1, now + 1)):
            self.update_masks()
        for name, compactor in self.compactors.items():
            weight = compactor.weight
            if weight.grad is None:
                continue
            gradient = compactor_gradient(compactor, weight.grad, self.lasso)
            weight.sub_(self.buffers[name].mul_(self.momentum).add_(gradient), alpha=self.rate())
            weight.grad = None

    def update_masks(self) -> None:
        """Mask the rows with the smallest norms until the target is met, or ``step`` more than before are masked."""
        norms = {name: compactor.norms() for name, compactor in self.compactors.items()}
        rows = sorted(
            (value, name, row) for name, all_norms in norms.items() for row, value in enumerate(all_norms.tolist())
        )
        limit = sum(int((compactor.mask == 0).sum()) for compactor in self.compactors.values()) + self.step
        widths = {name: len(compactor.mask) for name, compactor in self.compactors.items()}
        masked: dict[str, list[int]] = {name: [] for name in self.compactors}
        number = 0
        for _, name, row in rows:
            if number == limit or self.macs.share(widths) <= self.target:
                break
            if widths[name] > 1:
                widths[name] -= 1
                masked[name].append(row)
                number += 1
        for name, compactor in self.compactors.items():
            compactor.mask.fill_(1)
            compactor.mask[masked[name]] = 0

    def state(self) -> dict:
        """Return the momentum buffers of the compactors, whose masks are part of the model."""
        return {"momentum_buffers": self.buffers}

    def after_train(self, runner: Runner) -> None:
        """Log the share of the multiply-adds that is left, and the rows whose mask and norm do not agree."""
        stay = {name: remaining_rows(compactor) for name, compactor in self.compactors.items()}
        share = self.macs.share({name: len(rows) for name, rows in stay.items()})
        print_log(f"ResRep leaves {share:.3f} of the multiply-adds; the target is {self.target}.", "current")
        for name, rows in stay.items():
            masked = set((self.compactors[name].mask == 0).nonzero().flatten().tolist())
            late, more = len(masked & set(rows)), len(self.compactors[name].mask) - len(masked | set(rows))
            if late:
                print_log(f"{late} masked filters of {name} have not vanished: kept.", "current", logging.WARNING)
            if more:
                print_log(f"{more} filters of {name} have vanished unmasked: removed.", "current", logging.WARNING)


def norm_at_end(rates: Sequence[float], momentum: float, lasso: float, start: int) -> float:
    """Compute the norm of a row at the end of training if only the penalty changes it from some step on.

    Args:
        rates: Learning rate of each step.
        momentum: Momentum of SGD.
        lasso: Strength of the penalty.
        start: The step.
    """
    position, velocity = LARGEST, 0.0
    for rate in rates[start:]:
        velocity = momentum * velocity + (lasso if position > 0 else -lasso)
        position -= rate * velocity
    return abs(position)


def compactor_gradient(compactor: Compactor, gradient: Tensor, lasso: float) -> Tensor:
    """Compute the gradient of a compactor: that of the loss in rows that are not masked, and that of the penalty.

    Args:
        compactor: The compactor.
        gradient: Gradient of the loss, shape (D, D, 1, 1).
        lasso: Strength of the penalty.

    Returns:
        Shape (D, D, 1, 1).
    """
    norms = compactor.norms().view(-1, 1, 1, 1)
    pull = torch.where(norms > 0, compactor.weight / norms, 0.0)  # a row of zeros has no direction
    return compactor.mask.view(-1, 1, 1, 1) * gradient + lasso * pull

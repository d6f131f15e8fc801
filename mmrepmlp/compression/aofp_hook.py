# SPDX-License-Identifier: Apache-2.0
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from mmrepmlp.compression.gradient_hook import GradientHook, iterations_per_step
from mmrepmlp.compression.groups import CompressionError, find_groups
from mmrepmlp.compression.macs import MacsOfWidths
from mmrepmlp.compression.reduce import zero_filters
from mmrepmlp.engine.hooks.switch_to_deploy_hook import get_model
from mmrepmlp.registry import HOOKS


@dataclass
class Search:
    """The search for filters of a layer that can be removed.

    Attributes:
        mask: 1 for each filter that remains, 0 for each that was dropped.
        space: The filters under search.
        damage: Sum of the damages measured without each filter, shape (D,), float64.
        trials: How often the damage without each filter was measured, shape (D,).
        steps: Steps of the optimizer with this space; negative before the search begins.
    """

    mask: list[int]
    space: list[int]
    damage: Tensor
    trials: Tensor
    steps: int

    @classmethod
    def start(cls, mask: list[int], steps: int = 0) -> "Search":
        """Begin a search among all filters that remain."""
        space = [i for i, present in enumerate(mask) if present]
        return cls(mask, space, torch.zeros(len(mask), dtype=torch.float64), torch.zeros(len(mask)), steps)

    def halve(self, threshold: float) -> "Search":
        """Judge the half of the space with the smaller mean damages: drop it if all of them are below a threshold, else
        search only in it."""
        means = self.damage / self.trials.clamp(min=1)
        half = sorted(self.space, key=lambda i: (means[i].item(), i))[: len(self.space) // 2]
        if half and max(means[i].item() for i in half) < threshold:
            return Search.start([int(present and i not in half) for i, present in enumerate(self.mask)])
        if len(half) > 1:
            return Search(self.mask, sorted(half), torch.zeros_like(self.damage), torch.zeros_like(self.trials), 0)
        return Search.start(self.mask)


@HOOKS.register_module()
class AOFPHook(GradientHook):
    """Approximated oracle filter pruning (ICML 2019): search for unimportant filters during training.

    In each iteration, the layers that read a layer's output also run without a random half of its filters under search.
    The change of their output, relative to its size, is the damage without these filters. After ``per_half`` steps, the
    half with the smaller mean damages is dropped if all of them are small, else it is searched in turn. Dropped filters
    are zero from then on. ``mmrepmlp reparameterize`` removes them; continue training with the smaller model. Start
    from a trained checkpoint (``load_from``).

    Args:
        target: Share of the model's multiply-adds at which the search ends. Default: 0.5.
        threshold: Damage below which a filter can be dropped. Default: 0.01.
        per_half: Steps of the optimizer for each half. Default: 1000.
        start: Steps of the optimizer before the search begins. Default: 500.
        layers: Names of the layers whose filters may be removed, or parts of the names between dots. Default: all
            layers that :func:`find_groups` finds.
        seed: Seed of the random halves. Default: 0.

    Raises:
        ValueError: ``target`` is out of range.
        CompressionError: Filters of a layer cannot be removed, or training ends before the first half is judged.
    """

    def __init__(
        self,
        target: float = 0.5,
        threshold: float = 0.01,
        per_half: int = 1000,
        start: int = 500,
        layers: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 < target < 1:
            raise ValueError(f"target={target}: expected a share above 0 and below 1.")
        self.target, self.threshold, self.per_half, self.start = target, threshold, per_half, start
        self.layers, self.seed = layers, seed

    def prepare(self, runner: Runner, state: dict | None) -> None:
        """Begin the searches, or restore those of a resumed training, and register hooks on the layers."""
        self.model, self.step = get_model(runner), 0
        steps = (runner.max_iters - runner.iter) // iterations_per_step(runner)
        if state is None and steps <= self.start + self.per_half:
            raise CompressionError(
                f"Training has {steps} steps, but the first filters are judged after start + per_half = "
                f"{self.start + self.per_half}. Train longer, or lower these."
            )
        self.groups = find_groups(self.model, self.layers)
        self.macs = MacsOfWidths(self.model, self.groups)
        delay = self.per_half // len(self.groups)
        self.searches = {
            name: Search.start([1] * group.channels, -self.start - i * delay)
            for i, (name, group) in enumerate(self.groups.items())
        }
        if state is not None:
            self.step = state["step"]
            self.searches = {name: Search(**search) for name, search in state["searches"].items()}
        self.changes = {name: torch.zeros(2, dtype=torch.float64) for name in self.groups}
        self.ablated = {name: self.draw(name) for name in self.groups}
        self.listening = False
        self.model.register_forward_pre_hook(lambda *_: self.listen(True))
        self.model.register_forward_hook(lambda *_: self.listen(False))
        modules = dict(self.model.named_modules())
        for name, group in self.groups.items():
            for reader, behind in group.behind.items():
                self.follow(name, modules[reader], behind.norm and modules[behind.norm], behind.activation)
        runner.optim_wrapper.optimizer.register_step_post_hook(lambda *_: self.drop())

    def listen(self, listening: bool) -> None:
        """Measure only during the forward pass of the whole model, not when layers are recomputed."""
        self.listening = listening and self.model.training

    def follow(self, name: str, reader: nn.Module, norm: _BatchNorm | None, activation: Callable) -> None:
        """Measure, in each call of a layer that reads a group of channels, how its output changes without some."""

        @torch.no_grad()
        def measure(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            ablated = self.ablated[name]
            if not self.listening or ablated is None:
                return
            seen = torch.ones(self.groups[name].channels, device=output.device, dtype=inputs[0].dtype)
            seen[ablated] = 0
            shape = (-1,) if isinstance(module, nn.Linear) else (1, -1, 1, 1)
            with statistics_kept(module):
                without = module.forward(inputs[0] * seen.view(shape))
            base, other = (activation(normalize(norm, x)).double() for x in (output, without))
            self.changes[name] += torch.stack([(base - other).square().sum(), base.square().sum()]).cpu()

        reader.register_forward_hook(measure)

    def draw(self, name: str) -> list[int] | None:
        """Draw the filters that the next layers do without until the next step, the same in every process; None if the
        search has not begun, or the target is met."""
        search = self.searches[name]
        if search.steps < 0 or len(search.space) < 2 or self.is_done():
            return None
        layer = list(self.groups).index(name)
        generator = torch.Generator().manual_seed(hash((self.seed, self.step, layer)) % 2**63)
        order = torch.randperm(len(search.space), generator=generator)[: len(search.space) // 2]
        return [search.space[i] for i in order.tolist()]

    def widths(self) -> dict[str, int]:
        """Return the number of filters that each layer has left."""
        return {name: sum(search.mask) for name, search in self.searches.items()}

    def is_done(self) -> bool:
        """Whether the target is met."""
        return self.macs.share(self.widths()) <= self.target

    def before_step(self, optimizer: Optimizer) -> None:
        """Add up the damages, and judge the halves that are due."""
        for name in self.groups:
            search, ablated = self.searches[name], self.ablated[name]
            if ablated is not None:
                all_reduce(change := self.changes[name])
                search.damage[ablated] += (change[0] / change[1].clamp(min=1e-300)).item()
                search.trials[ablated] += 1
            self.changes[name].zero_()
            search.steps += 1
            if search.steps == self.per_half and not self.is_done():
                self.searches[name] = search.halve(self.threshold)
        self.step += 1
        self.ablated = {name: self.draw(name) for name in self.groups}

    def drop(self) -> None:
        """Set dropped filters to zero."""
        for name, group in self.groups.items():
            if not all(mask := self.searches[name].mask):
                zero_filters(self.model, group, [i for i, present in enumerate(mask) if present])

    def state(self) -> dict:
        """Return the searches, and the masks that conversion needs."""
        return {
            "step": self.step,
            "searches": {name: dict(vars(search)) for name, search in self.searches.items()},
            "masks": {name: search.mask for name, search in self.searches.items()},
        }

    def after_train(self, runner: Runner) -> None:
        """Log the share of the multiply-adds that is left."""
        share = self.macs.share(self.widths())
        level = logging.WARNING if share > self.target else logging.INFO
        print_log(f"AOFP leaves {share:.3f} of the multiply-adds; the target is {self.target}.", "current", level=level)


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Keep the running statistics of a module's batch norms unchanged."""
    tracking = [norm for norm in module.modules() if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    for norm in tracking:
        norm.track_running_stats = not norm.training
    yield
    for norm in tracking:
        norm.track_running_stats = True


def normalize(norm: _BatchNorm | None, x: Tensor) -> Tensor:
    """Normalize a batch without updating the running statistics of the norm."""
    if norm is None:
        return x
    if norm.training or norm.running_mean is None:
        return F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)

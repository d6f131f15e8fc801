# SPDX-License-Identifier: Apache-2.0
"""Optimizers that update a weight as if the parts of the sum that it stands for were trained."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from mmrepmlp.reparam import LinearAddition


@dataclass(frozen=True)
class ReparameterizedWeight:
    """A weight that stands for a sum."""

    name: str
    group: int  # index of the parameter group that holds nothing else
    addition: LinearAddition

    def parameter(self, optimizer: Optimizer) -> nn.Parameter:
        """Return the weight itself."""
        return optimizer.param_groups[self.group]["params"][0]


class GradientReparameterization(Optimizer):
    """Base class of optimizers that change gradients before a step and restore them after it.

    A subclass does so in ``before_step`` and ``after_step``; ``weights`` are the weights that stand for sums.
    """

    def __init__(self, params: Iterable[dict], *, weights: Sequence[ReparameterizedWeight], **settings: object) -> None:
        super().__init__(params, **settings)
        self.weights = list(weights)
        self.register_hooks()

    def register_hooks(self) -> None:
        """Call the two methods before and after each step."""
        # torch calls __setstate__ also when it loads a state dict.
        if enter_step not in self._optimizer_step_pre_hooks.values():
            self.register_step_pre_hook(enter_step)
            self.register_step_post_hook(leave_step)

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "weights": self.weights}

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.register_hooks()


def enter_step(optimizer: GradientReparameterization, args: tuple, settings: dict) -> None:
    """Run ``before_step``, as a hook of the optimizer."""
    if any(argument is not None for argument in (*args[1:], *settings.values())):  # the first is the optimizer
        raise ValueError("step(closure): gradients are re-parameterized before the step. Compute them before the call.")
    with torch.no_grad():
        optimizer.before_step()


def leave_step(optimizer: GradientReparameterization, args: tuple, settings: dict) -> None:
    """Run ``after_step``, as a hook of the optimizer."""
    with torch.no_grad():
        optimizer.after_step()


class ReparameterizedSGD(GradientReparameterization, SGD):
    """SGD on the parts of sums of linear operators, given only the sums (RepOptimizer, ICLR 2023, section 3).

    Momentum and weight decay are linear as well, so that it is enough to change the gradient. Arguments are those of
    :class:`GradientReparameterization` and torch's SGD.
    """

    def before_step(self) -> None:
        """Transform the gradients."""
        self.gradients: list[Tensor | None] = []
        for weight in self.weights:
            parameter = weight.parameter(self)
            self.gradients.append(parameter.grad)
            if parameter.grad is not None:
                parameter.grad = weight.addition.transform(parameter.grad)

    def after_step(self) -> None:
        """Restore the gradients."""
        for weight, gradient in zip(self.weights, self.gradients):
            weight.parameter(self).grad = gradient
        del self.gradients


class ReparameterizedAdamW(GradientReparameterization, AdamW):
    """AdamW on the parts of sums of linear operators, given only the sums.

    Its step is not a linear function of the gradient, so each part has its own moments: those of the kernels, which are
    small, belong to parameters in additional groups, which only hold the last step. Arguments are those of
    :class:`GradientReparameterization` and torch's AdamW.

    Raises:
        ValueError: An option is set with which steps cannot be split among the parts.
    """

    def __init__(self, params: Iterable[dict], *, weights: Sequence[ReparameterizedWeight], **settings: object) -> None:
        for option in ("fused", "differentiable", "capturable"):
            if settings.get(option):
                raise ValueError(
                    f"AdamW with {option}=True cannot split the step of a weight among its addends. Leave {option} out."
                )
        super().__init__(params, weights=weights, **settings)
        self.first_kernels = len(self.param_groups)
        for weight in self.weights:
            group, like = self.param_groups[weight.group], weight.parameter(self)
            kernels = [
                torch.zeros(addend.shape, dtype=like.dtype, device=like.device) for addend in weight.addition.addends
            ]
            self.add_param_group({**group, "params": kernels, "weight_decay": 0.0})

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "first_kernels": self.first_kernels}

    def before_step(self) -> None:
        """Set the gradient of each part."""
        self.steps: list[tuple[Tensor | None, Tensor | None]] = []
        for index, weight in enumerate(self.weights):
            parameter = weight.parameter(self)
            gradient = parameter.grad
            self.steps.append((gradient, None if gradient is None else parameter.clone()))
            if gradient is not None:
                parameter.grad, gathered = weight.addition.split_gradient(gradient)
                for kernel, part in zip(self.kernels(index), gathered):
                    kernel.grad = part

    def after_step(self) -> None:
        """Add up the steps of the parts, and restore the gradients."""
        for index, (weight, (gradient, before)) in enumerate(zip(self.weights, self.steps)):
            parameter, group = weight.parameter(self), self.param_groups[weight.group]
            if gradient is None:
                continue
            decayed, kernels = before.mul_(1 - group["lr"] * group["weight_decay"]), self.kernels(index)
            parameter.copy_(decayed + weight.addition.fuse(parameter - decayed, kernels))
            for kernel in kernels:
                kernel.zero_()
                kernel.grad = None
            parameter.grad = gradient
        del self.steps

    def kernels(self, index: int) -> list[Tensor]:
        """Return the steps of the kernels of a weight, by its index."""
        return self.param_groups[self.first_kernels + index]["params"]

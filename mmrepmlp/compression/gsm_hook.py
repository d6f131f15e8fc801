# SPDX-License-Identifier: Apache-2.0
import torch
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import nn
from torch.optim import Optimizer

from mmrepmlp.compression.gradient_hook import GradientHook, groups_of, refuse_split_weights, shrinkage
from mmrepmlp.compression.groups import CompressionError, named
from mmrepmlp.engine.hooks.switch_to_deploy_hook import get_model
from mmrepmlp.registry import HOOKS

ENOUGH = 8.0  # factor by which weights without a gradient have to decay, as a power of e


@HOOKS.register_module()
class GSMHook(GradientHook):
    """Global sparse momentum (NeurIPS 2019): train a network until most of its weights are zero.

    In each step, only the weights that matter most to the loss, by ``|gradient * weight|``, follow their gradient; all
    others decay. When training ends, the smallest weights of the whole network are set to zero, and the result is saved
    as ``sparse.pth``. This concerns the weights of convolutions and linear layers, the first and the last layer
    included, but no norms and biases. With a momentum of 0.98 or more, weights decay fast enough.

    Args:
        nonzero: Share of the weights that stay nonzero. Default: 0.1, ten times fewer.
        layers: Names of the layers to make sparse, or parts of the names between dots. Default: all.

    Raises:
        ValueError: ``nonzero`` is out of range.
        CompressionError: Weights would not decay far enough over the schedule, a layer does not exist, or the optimizer
            is neither SGD nor AdamW.
    """

    priority = "VERY_LOW"  # after the checkpoint of the last epoch

    def __init__(self, nonzero: float = 0.1, layers: list[str] | None = None) -> None:
        super().__init__()
        if not 0 < nonzero < 1:
            raise ValueError(f"nonzero={nonzero}: expected a share above 0 and below 1.")
        self.nonzero, self.layers = nonzero, layers

    def prepare(self, runner: Runner, state: dict | None) -> None:
        """Find the weights, and check that they will decay far enough."""
        self.weights = sparse_weights(get_model(runner), self.layers)
        refuse_split_weights(runner.optim_wrapper.optimizer, self.weights.values())
        if state is None:
            check_decay(runner, self.weights)

    def before_step(self, optimizer: Optimizer) -> None:
        """Keep the gradients of the weights that matter most."""
        weights = [weight for weight in self.weights.values() if weight.grad is not None]
        scores = torch.cat([(weight.grad * weight).abs().flatten() for weight in weights])
        active = torch.zeros_like(scores, dtype=torch.bool)
        active[scores.topk(int(self.nonzero * len(scores))).indices] = True
        for weight, mask in zip(weights, active.split([weight.numel() for weight in weights])):
            weight.grad *= mask.view_as(weight)

    def after_train(self, runner: Runner) -> None:
        """Set the smallest weights to zero, and save the result."""
        cut_smallest(list(self.weights.values()), 1 - self.nonzero)
        runner.save_checkpoint(
            runner.work_dir, "sparse.pth", save_optimizer=False, save_param_scheduler=False, by_epoch=False
        )
        shares = ", ".join(f"{name} {(weight != 0).float().mean():.4f}" for name, weight in self.weights.items())
        print_log(f"Shares of weights that are not zero in sparse.pth: {shares}.", "current")


def sparse_weights(model: nn.Module, layers: list[str] | None) -> dict[str, nn.Parameter]:
    """Return the trained weights of the convolutions and linear layers of a model, by name.

    Raises:
        CompressionError: There are none, or none in one of ``layers``.
    """
    found = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.dim() in (2, 4)
    }
    for layer in layers or ():
        if not any(named(name, layer) for name in found):
            raise CompressionError(
                f"layers: {layer!r} has no weights that are trained. Expected some of {', '.join(found)}."
            )
    if layers is not None:
        found = {name: weight for name, weight in found.items() if any(named(name, layer) for layer in layers)}
    if not found:
        raise CompressionError(f"{type(model).__name__} has no convolution or linear layer that is trained.")
    return found


def check_decay(runner: Runner, weights: dict[str, nn.Parameter]) -> None:
    """Reject a schedule over which weights without a gradient stay too large to be set to zero."""
    groups = groups_of(runner.optim_wrapper.optimizer)
    decays = {weight: groups[weight].get("weight_decay", 0.0) for weight in weights.values()}
    powers = shrinkage(runner, decays)
    name = min(weights, key=lambda name: powers[weights[name]])
    if powers[weights[name]] < ENOUGH:
        raise CompressionError(
            f"Over this schedule, a weight of {name} without a gradient only shrinks by a factor of "
            f"e^{powers[weights[name]]:.2g}, and GSM needs e^{ENOUGH:g}. Train longer, or with a higher momentum, lr "
            "or weight_decay. (Each step adds about lr * weight_decay / (1 - momentum) to the power.)"
        )


@torch.no_grad()
def cut_smallest(weights: list[nn.Parameter], share: float) -> None:
    """Set a share of the weights to zero, the smallest of all by one threshold."""
    sizes = torch.cat([weight.abs().flatten() for weight in weights])
    kept = torch.ones_like(sizes, dtype=torch.bool)
    kept[sizes.topk(int(share * len(sizes)), largest=False).indices] = False
    for weight, mask in zip(weights, kept.split([weight.numel() for weight in weights])):
        weight *= mask.view_as(weight)

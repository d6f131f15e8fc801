# SPDX-License-Identifier: Apache-2.0
"""Batch norms after the fully connected layers of a deployed network, for fine-tuning it."""

from collections.abc import Iterable

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

from mmrepmlp.models import RepMLPBlock
from mmrepmlp.reparam import to_float64


def insert_bn(
    model: nn.Module,
    batches: Iterable[Tensor],
    norm_cfg: dict = dict(type="BN", requires_grad=True),
) -> nn.Module:
    """Insert a batch norm after ``fc3`` of every block in deploy form, as the identity, in place.

    The statistics are those of the data, and weight and bias undo them. ``switch_to_deploy`` fuses the norms again.

    Args:
        model: A network in deploy form, or a model that takes images and contains one.
        batches: Images to collect statistics on, each of shape (N, C, H, W), normalized.
        norm_cfg: Config of the batch norms. Default: ``dict(type='BN', requires_grad=True)``.

    Returns:
        The same object. Its outputs in eval mode stay the same up to rounding.

    Raises:
        ValueError: There is no block in deploy form, or there are no images.
    """
    for block in [module for module in model.modules() if isinstance(module, RepMLPBlock) and module.deploy]:
        block.insert_bn(norm_cfg)
    collect_statistics(model, batches)
    return model


@torch.no_grad()
def collect_statistics(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Set the statistics of inserted batch norms to those of data, and their weights and biases to undo them.

    Args:
        model: A model with inserted batch norms that are the identity.
        batches: Images, each of shape (N, C, H, W), normalized. Statistics are taken over all processes.

    Returns:
        The number of images in all processes.

    Raises:
        ValueError: There are no inserted batch norms, or no images.
    """
    norms = [m.fc3_bn for m in model.modules() if isinstance(m, RepMLPBlock) and not m.deploy and not m.local_branches]
    if not norms:
        raise ValueError(
            f"{type(model).__name__} has no RepMLPBlock in deploy form with a batch norm. Convert it with "
            "switch_to_deploy and call insert_bn, or build it with insert_bn=True."
        )
    sums = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms}

    def add(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        x = to_float64(inputs[0]).transpose(0, 1).flatten(1)
        sums[norm] = sums[norm].to(x.device) + torch.stack(
            [torch.full_like(x[:, 0], x.size(1)), x.sum(1), (x * x).sum(1)]
        )

    handles = [norm.register_forward_pre_hook(add) for norm in norms]
    training, images = model.training, torch.zeros(())
    model.eval()
    try:
        for batch in batches:
            model(batch)
            images += len(batch)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    all_reduce(images)
    if not images:
        raise ValueError("batches: no images to collect statistics on. Give at least one batch.")
    for norm, total in sums.items():
        all_reduce(total)
        count, values, squares = total
        mean = values / count
        norm.running_mean.copy_(mean)
        norm.running_var.copy_((squares / count - mean * mean).clamp(min=0))
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(norm.running_mean)
    return int(images)

# SPDX-License-Identifier: Apache-2.0
"""Build the networks to measure: ours and mmpretrain's, or the whole model of a config."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmrepmlp.models import RepMLPNet, image_size
from mmrepmlp.reparam import switch_to_deploy
from mmrepmlp.verbs.config import load_config
from mmrepmlp.verbs.model import build_untrained

OURS, THEIRS = "mmrepmlp", "mmpretrain"
# Networks with the structure of the deploy form in training: their arguments besides those of ours.
SINGLE_LAYER = {
    "gradient_reparam": dict(gradient_reparam=True),
    "no locality": dict(reparam_conv_kernels=None),
}


def build_networks(arch: str | dict, img_size: int, against: str | None, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Build our network in training form and, if selected, mmpretrain's, with the same weights if possible."""
    ours = RepMLPNet(arch, img_size)
    networks = {OURS: ours}
    if against == THEIRS:
        from mmpretrain.models.backbones.repmlp import RepMLPNet as Theirs

        networks = {THEIRS: Theirs(ours.arch_settings, img_size, reparam_conv_kernels=(1, 3)), OURS: ours}
    elif against is not None:
        raise ValueError(f"against={against!r}: expected None or {THEIRS!r}.")
    first = next(iter(networks.values()))
    set_statistics(first, torch.randn(2, 3, img_size, img_size))
    if first is not ours and has_same_weights(first):
        ours.load_state_dict(first.state_dict())
    return {name: network.to(dtype).eval() for name, network in networks.items()}


def build_whole(
    config: str | Path, size: tuple[int, int] | None, cfg_options: dict | None
) -> tuple[dict[str, nn.Module], tuple[int, int]]:
    """Build the model of a config as a function of images, with random weights; return it with its image size."""
    from mmrepmlp.export.network import NamedOutputs
    from mmrepmlp.verbs.deploy.pipeline import describe_pipeline, graph_size

    cfg = load_config(config, cfg_options)
    model = build_untrained(cfg).eval()
    size = size or graph_size(model, describe_pipeline(cfg)[1]) or image_size(model)
    return {OURS: NamedOutputs(model).eval()}, tuple(size)


@torch.no_grad()
def set_statistics(model: nn.Module, images: Tensor) -> None:
    """Set the statistics of batch norms to those of a batch, so that they are not trivial, as after training."""
    norms = {module: module.momentum for module in model.modules() if isinstance(module, _BatchNorm)}
    for norm in norms:
        norm.momentum = 1.0
    model.train()(images)
    for norm, momentum in norms.items():
        norm.momentum = momentum


def has_same_weights(model: nn.Module) -> bool:
    """Whether mmpretrain's network can have our weights: it rounds bottlenecks to multiples of 8."""
    return all(channels % 32 == 0 for channels in model.channels)


def convert(model: nn.Module) -> nn.Module:
    """Return a copy of a network in deploy form."""
    return switch_to_deploy(copy.deepcopy(model))

# SPDX-License-Identifier: Apache-2.0
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd


class FirstConv(Exception):
    """Ends a forward pass at its first convolution."""


@torch.no_grad()
def image_channels(model: nn.Module) -> int:
    """Number of image channels that a model's backbone was built for, found by the convolution that it calls first.

    What comes before that, such as a rearrangement of pixels into channels, may multiply the number.

    Args:
        model: A classifier, segmentor or detector, or a bare backbone; 3 is assumed if it calls no convolution.
    """
    backbone = getattr(model, "backbone", model)
    found: list[int] = []

    def stop(module: nn.Module, args: tuple) -> None:
        found.append(3 * module.in_channels // args[0].size(1))
        raise FirstConv

    handles = [m.register_forward_pre_hook(stop) for m in backbone.modules() if isinstance(m, _ConvNd)]
    like = next(backbone.parameters(), torch.zeros(1))
    try:
        backbone(torch.zeros(1, 3, 64, 64, dtype=like.dtype, device=like.device))
    except Exception:  # an image of these channels or this size may not do
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else 3

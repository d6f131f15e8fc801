# SPDX-License-Identifier: Apache-2.0
"""Which images a model takes, asked of its backbone."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from .parts import named_parts

INPUTS = {_ConvNd: ("in_channels", 1), _NormBase: ("num_features", 1), nn.Linear: ("in_features", -1)}


class FirstLayer(Exception):
    """Ends a forward pass at its first layer."""


def image_size(model: nn.Module) -> tuple[int, int]:
    """Height and width in pixels that a model's backbone was built for: its ``img_size``; 224 if it has none.

    Args:
        model: A model of any framework, or a bare backbone.
    """
    side = next((part.img_size for part in [model, *named_parts(model).values()] if hasattr(part, "img_size")), 224)
    return (side, side) if isinstance(side, int) else tuple(side)


def image_channels(model: nn.Module) -> int:
    """Number of image channels that a model's backbone was built for, asked of the layer that it calls first.

    What comes before that layer may multiply the number, such as a rearrangement of pixels into channels, or add to it,
    such as coordinates.

    Args:
        model: A model of any framework, or a bare backbone; 3 is assumed if it calls no convolution, batch norm or
            linear layer.
    """
    parts = named_parts(model)
    backbones = [part for name, part in parts.items() if name.split(".")[-1] == "backbone"]
    for backbone in backbones or [model, *parts.values()]:
        for channels in possible_channels(backbone):
            expected, given = first_layer_inputs(backbone, channels) or (0, channels)
            if expected == given:
                return channels
    return 3


def possible_channels(backbone: nn.Module) -> Iterator[int]:
    """Numbers of channels that could suit the first layer, by what it makes of 3."""
    yield 3
    inputs = first_layer_inputs(backbone, 3)
    if inputs:
        expected, given = inputs
        yield 3 * expected // given
        yield max(3 + expected - given, 0)
    else:  # 3 channels do not reach it
        yield from dict.fromkeys(getattr(layer, name) for layer, name, _ in layers_with_inputs(backbone))


def layers_with_inputs(backbone: nn.Module) -> Iterator[tuple[nn.Module, str, int]]:
    """Layers, the attributes that hold their numbers of inputs, and the dimensions of a tensor that these belong to."""
    for module in backbone.modules():
        for kind, (attribute, dim) in INPUTS.items():
            if isinstance(module, kind):
                yield module, attribute, dim


@torch.no_grad()
def first_layer_inputs(backbone: nn.Module, channels: int) -> tuple[int, int] | None:
    """Expected and given number of inputs of the layer that a backbone calls first; None if it calls none."""
    found: list[tuple[int, int]] = []

    def stop_at(attribute: str, dim: int):
        def hook(module: nn.Module, args: tuple[Tensor]) -> None:
            found.append((getattr(module, attribute), args[0].size(dim)))
            raise FirstLayer

        return hook

    handles = [layer.register_forward_pre_hook(stop_at(*rest)) for layer, *rest in layers_with_inputs(backbone)]
    like = next(backbone.parameters(), torch.zeros(1))
    try:
        backbone(like.new_zeros(1, channels, *image_size(backbone)))
    except Exception:  # an image of these channels or this size may not do
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None

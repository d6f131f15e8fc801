# SPDX-License-Identifier: Apache-2.0
"""Count the multiply-adds of a model at other widths."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmrepmlp.compression.groups import ChannelGroup, call, plain_copy
from mmrepmlp.models import image_channels, image_size


class MacsOfWidths:
    """Multiply-adds of a model on one image, at any widths of groups of channels.

    Those of a layer are proportional to the number of channels that it computes, and to the number that it reads.

    Args:
        model: A model at its original widths, perhaps with compactors, which are not counted.
        groups: The groups, by any names.
    """

    def __init__(self, model: nn.Module, groups: Mapping[str, ChannelGroup]) -> None:
        self.groups = dict(groups)
        self.total, self.of_layers = count(model)

    def share(self, widths: Mapping[str, int]) -> float:
        """Return the share of the multiply-adds that is left.

        Args:
            widths: Number of channels of each group; groups that are missing keep theirs.
        """
        factors: dict[str, float] = {}
        for name, group in self.groups.items():
            factor = widths.get(name, group.channels) / group.channels
            for layer in (*group.writers, *group.readers):
                factors[layer] = factors.get(layer, 1.0) * factor
        saved = sum(self.of_layers.get(layer, 0) * (1 - factor) for layer, factor in factors.items())
        return 1 - saved / self.total


@torch.no_grad()
def count(model: nn.Module) -> tuple[int, dict[str, int]]:
    """Count the multiply-adds of a model without compactors on one image, in total and of each module by name."""
    model = plain_copy(model)
    images = torch.randn(1, image_channels(model), *image_size(model), device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter:
        call(model, images)
    root = type(model).__name__
    counts = {
        name.removeprefix(f"{root}."): sum(kinds.values()) // 2 for name, kinds in counter.get_flop_counts().items()
    }
    return counter.get_total_flops() // 2, counts

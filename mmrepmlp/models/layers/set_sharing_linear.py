# SPDX-License-Identifier: Apache-2.0
import math

import torch
from torch import Tensor, nn

from .inference import multiply_tiles


class SetSharingLinear(nn.Module):
    """A fully connected layer over the pixels of a tile, one for each set of channels (paper section 3.2).

    Computed as one batched matrix product. The weight keeps the shape of the grouped 1x1 convolution that the authors
    and mmpretrain use, so that checkpoints are interchangeable.

    Args:
        num_sets: Number of sets S.
        pixels: Number of pixels P of a tile.
        bias: Whether to add a bias.
    """

    def __init__(self, num_sets: int, pixels: int, bias: bool = False) -> None:
        super().__init__()
        self.num_sets = num_sets
        self.pixels = pixels
        self.weight = nn.Parameter(torch.empty(num_sets * pixels, pixels, 1, 1))
        self.bias = nn.Parameter(torch.empty(num_sets * pixels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as torch does a linear layer with P inputs."""
        bound = 1 / math.sqrt(self.pixels)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, tiles: Tensor) -> Tensor:
        """Map (S, M, P) to (S, M, P)."""
        matrices = self.weight.view(self.num_sets, self.pixels, self.pixels)
        out = multiply_tiles(tiles, matrices)
        return out if self.bias is None else out.add_(self.bias.view(self.num_sets, 1, self.pixels))

    def extra_repr(self) -> str:
        return f"num_sets={self.num_sets}, pixels={self.pixels}, bias={self.bias is not None}"

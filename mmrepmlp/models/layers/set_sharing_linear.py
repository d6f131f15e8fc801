# SPDX-License-Identifier: Apache-2.0
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tracing import is_tracing

# Tiles of at least this many pixels are multiplied by oneDNN, where it is there.
LARGE_TILE = 512


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
        if self.pixels >= LARGE_TILE and suits_onednn(tiles):
            out = multiply_by_onednn(tiles, matrices)
        else:
            out = torch.bmm(tiles, matrices.transpose(1, 2))
        return out if self.bias is None else out.add_(self.bias.view(self.num_sets, 1, self.pixels))

    def extra_repr(self) -> str:
        return f"num_sets={self.num_sets}, pixels={self.pixels}, bias={self.bias is not None}"


def suits_onednn(tiles: Tensor) -> bool:
    """Whether oneDNN's convolution is the faster matrix product for these tiles."""
    return (
        tiles.device.type == "cpu"
        and tiles.numel() > 0
        and tiles.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
        and not is_tracing()
    )


def multiply_by_onednn(tiles: Tensor, matrices: Tensor) -> Tensor:
    """Batched ``tiles @ matrices.mT`` by oneDNN, which eager PyTorch offers for float32 through convolutions alone.

    The large operand, a matrix of P rows, plays the image, P pixels of P channels as it lies in memory; each tile
    plays a 1x1 kernel. The other way round oneDNN would rearrange the large operand in each call.

    Args:
        tiles: Shape (S, M, P).
        matrices: Shape (S, P, P).

    Returns:
        Shape (S, M, P); in memory the rows come first, as in a feature map of one tile.
    """
    products = [
        F.conv2d(matrix[None, None].permute(0, 3, 1, 2), rows[:, :, None, None])[0, :, 0]
        for rows, matrix in zip(tiles, matrices)
    ]
    return products[0][None] if len(products) == 1 else torch.stack(products, 1).transpose(0, 1)

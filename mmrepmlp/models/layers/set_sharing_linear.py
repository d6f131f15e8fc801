# SPDX-License-Identifier: Apache-2.0
from torch import Tensor

from .grouped_linear import GroupedLinear
from .inference import multiply_tiles


class SetSharingLinear(GroupedLinear):
    """A fully connected layer over the pixels of a tile, one for each set of channels (paper section 3.2).

    Args:
        num_sets: Number of sets S.
        pixels: Number of pixels P of a tile.
        bias: Whether to add a bias.
    """

    def __init__(self, num_sets: int, pixels: int, bias: bool = False) -> None:
        super().__init__(num_sets, pixels, pixels, bias)

    @property
    def num_sets(self) -> int:
        return self.groups

    @property
    def pixels(self) -> int:
        return self.in_features

    def multiply(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Map (S, M, P) by matrices (S, P, P) to (S, M, P)."""
        return multiply_tiles(x, matrices)

    def extra_repr(self) -> str:
        return f"num_sets={self.num_sets}, pixels={self.pixels}, bias={self.bias is not None}"

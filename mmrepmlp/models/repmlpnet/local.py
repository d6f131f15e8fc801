# SPDX-License-Identifier: Apache-2.0
"""The local perceptron's convolution, and the ways to compute it (paper section 3.3)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from mmrepmlp.reparam import TileTaps

from ..common import is_plain, is_symbolic


class SetConv2d(nn.Conv2d):
    """The local perceptron: a depth-wise convolution of tiles, one kernel for each set (paper section 3.3).

    Args:
        num_sets: Number of sets S.
        kernel_size: Side of the kernel in pixels, odd; zeros pad the tiles so that they keep their size.
        h: Height of a tile in pixels.
        w: Width of a tile in pixels.

    Attributes:
        method: Name in :data:`METHODS` of how to compute it, for all instances; all compute the same. Default: "rows",
            the fastest on a CPU.
    """

    method = "rows"

    def __init__(self, num_sets: int, kernel_size: int, h: int, w: int) -> None:
        super().__init__(num_sets, num_sets, kernel_size, padding=kernel_size // 2, groups=num_sets, bias=False)
        self.h, self.w = h, w

    def forward(self, tiles: Tensor) -> Tensor:
        """Map (1, S, M, h * w) to the same shape."""
        weight, rows = self.weight.to(tiles.dtype), tiles.size(2)
        if self.kernel_size == (1, 1):  # a product, for which a convolution of many groups takes 100 times as long
            out = tiles * weight.view(-1, 1, 1)
        else:
            # The number of groups can be neither symbolic nor zero, and torch.jit.trace would keep it.
            plain = is_plain() and not torch.compiler.is_compiling()
            by_sets = plain or is_symbolic(rows) or not tiles.numel()
            out = METHODS["sets" if by_sets else self.method](tiles.squeeze(0), weight, self.h, self.w).unsqueeze(0)
        return out if self.bias is None else out + self.bias.view(-1, 1, 1).to(out.dtype)


def convolve_rows(tiles: Tensor, weight: Tensor, h: int, w: int) -> Tensor:
    """All rows side by side as channels: on a CPU a convolution over S channels alone, one or four in the early stages,
    runs up to 40 times slower."""
    sets, rows, _ = tiles.shape
    maps, groups = tiles.reshape(1, sets * rows, h, w), sets * rows
    return F.conv2d(maps, weight.repeat_interleave(rows, 0), padding=weight.size(-1) // 2, groups=groups).view_as(tiles)


def convolve_sets(tiles: Tensor, weight: Tensor, h: int, w: int) -> Tensor:
    """The sets as channels, the rows as samples: no copies of the kernels."""
    maps = tiles.unflatten(2, (h, w)).transpose(0, 1)
    return F.conv2d(maps, weight, padding=weight.size(-1) // 2, groups=len(weight)).transpose(0, 1).flatten(2)


def add_shifted(tiles: Tensor, weight: Tensor, h: int, w: int) -> Tensor:
    """The sum of shifted maps, one for each tap."""
    side = weight.size(-1)
    maps = F.pad(tiles.unflatten(2, (h, w)), (side // 2,) * 4)
    out = torch.zeros_like(maps[..., :h, :w])
    for row in range(side):
        for column in range(side):
            tap = weight[:, :, row, column, None, None]
            out = torch.addcmul(out, tap, maps[..., row : row + h, column : column + w])
    return out.flatten(2)


def multiply_taps(tiles: Tensor, weight: Tensor, h: int, w: int) -> Tensor:
    """A product with the matrices that the kernels are in the fully connected layer."""
    taps = TileTaps(len(weight), weight.size(-1), h, w)
    return torch.bmm(tiles, WriteTaps.apply(weight, taps).transpose(1, 2))


class WriteTaps(torch.autograd.Function):
    """Kernels (S, 1, k, k) as matrices (S, h * w, h * w)."""

    @staticmethod
    def forward(ctx: FunctionCtx, kernels: Tensor, taps: TileTaps) -> Tensor:
        ctx.taps = taps
        pixels = taps.h * taps.w
        matrices = kernels.new_zeros(taps.sets, pixels, pixels)
        taps.add_to(matrices, kernels)
        return matrices

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.taps.gather(grad.contiguous()), None


METHODS: dict[str, Callable[[Tensor, Tensor, int, int], Tensor]] = {
    "rows": convolve_rows,
    "sets": convolve_sets,
    "shifts": add_shifted,
    "matrix": multiply_taps,
}

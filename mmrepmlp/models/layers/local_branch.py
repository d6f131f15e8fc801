# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrepmlp.reparam import fold_after, scale_and_shift

from .norm import build_batch_norm
from .tracing import is_symbolic


class SetConv2d(nn.Conv2d):
    """A depth-wise convolution of tiles, one kernel for each set.

    Computed with all rows side by side as channels: a convolution over S channels alone, one or four in the early
    stages, runs up to 40 times slower.

    Args:
        num_sets: Number of sets S.
        kernel_size: Side of the kernel in pixels, odd; zeros pad the tiles so that they keep their size.
        bias: Whether to add a bias. Default: False.
    """

    def __init__(self, num_sets: int, kernel_size: int, bias: bool = False) -> None:
        super().__init__(num_sets, num_sets, kernel_size, padding=kernel_size // 2, groups=num_sets, bias=bias)

    def forward(self, tiles: Tensor) -> Tensor:
        """Map (S, M, h, w) to (S, M, h, w)."""
        sets, rows, h, w = tiles.shape
        if self.kernel_size == (1, 1):  # a product, for which a convolution of many groups takes 100 times as long
            out = tiles * self.weight.to(tiles.dtype)
            return out if self.bias is None else out + self.bias.view(-1, 1, 1, 1).to(tiles.dtype)
        # The number of groups can be neither symbolic nor zero.
        if is_symbolic(rows) or not tiles.numel():
            return super().forward(tiles.transpose(0, 1)).transpose(0, 1)
        weight = self.weight.repeat_interleave(rows, 0)
        bias = None if self.bias is None else self.bias.repeat_interleave(rows)
        maps = tiles.reshape(1, sets * rows, h, w)
        return F.conv2d(maps, weight, bias, padding=self.padding, groups=sets * rows).view(sets, rows, h, w)


class LocalBranch(nn.Module):
    """A depth-wise convolution and its batch norm on tiles (paper section 3.3).

    Args:
        num_sets: Number of sets S.
        kernel_size: Side of the kernel in pixels, odd.
        norm_cfg: Config of the batch norm.
    """

    def __init__(self, num_sets: int, kernel_size: int, norm_cfg: dict) -> None:
        super().__init__()
        self.conv = SetConv2d(num_sets, kernel_size)
        self.bn = build_batch_norm(norm_cfg, num_sets)

    def forward(self, tiles: Tensor, h: int, w: int) -> Tensor:
        """Map (S, M, h * w) to (S, M, h * w)."""
        return norm_sets(self.bn, self.conv(tiles.unflatten(2, (h, w))).flatten(2))

    def get_equivalent_conv(self) -> tuple[Tensor, Tensor]:
        """The kernel (S, 1, k, k) and bias (S,) of convolution and norm as one, float64."""
        if isinstance(self.bn, nn.Identity):  # mmcv.cnn.fuse_conv_bn was here
            weight = self.conv.weight.double()
            return weight, torch.zeros_like(weight[:, 0, 0, 0]) if self.conv.bias is None else self.conv.bias.double()
        return fold_after(self.conv.weight, self.conv.bias, *scale_and_shift(self.bn))


def norm_sets(bn: nn.Module, tiles: Tensor) -> Tensor:
    """Apply a batch norm over S channels to tiles (S, M, P)."""
    return bn(tiles.unsqueeze(0)).squeeze(0)


def merge_branches(branches: Sequence[nn.Module]) -> tuple[Tensor, Tensor]:
    """Add up parallel convolutions with odd kernels into one.

    Args:
        branches: Have a ``get_equivalent_conv``.

    Returns:
        The kernel (O, I / groups, k, k), of the largest side, and the bias (O,), float64.
    """
    kernels, biases = zip(*(branch.get_equivalent_conv() for branch in branches))
    largest = max(kernel.size(-1) for kernel in kernels)
    padded = [F.pad(kernel.double(), [(largest - kernel.size(-1)) // 2] * 4) for kernel in kernels]
    return sum(padded), sum(bias.double() for bias in biases)

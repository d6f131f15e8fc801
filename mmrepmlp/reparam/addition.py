# SPDX-License-Identifier: Apache-2.0
"""Weights that train as if they were sums: gradient re-parameterization (RepOptimizer, ICLR 2023).

A sum of linear operators with constant scales in front of one batch norm, ``bn(a * W(x) + b * E(k)(x))``, is one
operator of weight ``M = a * W + b * E(k)``, where E writes a small kernel into the shape of W. Training W and k moves
M, and what it does to M can be computed from the gradient of M alone, so that W and k need not be there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Addend:
    """A linear map E that writes a kernel into a weight; by a constant, it may scale.

    Attributes:
        shape: The kernel's.
    """

    shape: tuple[int, ...]

    def add_to(self, weight: Tensor, kernel: Tensor) -> None:
        """Add ``E(kernel)`` to a weight, in place."""
        raise NotImplementedError

    def gather(self, gradient: Tensor) -> Tensor:
        """The gradient of the kernel from that of the weight; the adjoint of E."""
        raise NotImplementedError


@dataclass(frozen=True)
class TileTaps(Addend):
    """A depth-wise convolution with "same" zero padding, as a fully connected layer over the pixels of a tile.

    A tap of the kernel is shared by all pairs of pixels at its distance, which are a diagonal of the layer's matrix
    (RepMLPNet, paper section 3.3).

    Args:
        sets: Number of kernels S.
        kernel_size: Their side k in pixels, odd.
        h: Height of a tile in pixels.
        w: Width of a tile in pixels.
    """

    sets: int
    kernel_size: int
    h: int
    w: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.sets, 1, self.kernel_size, self.kernel_size

    def add_to(self, weight: Tensor, kernel: Tensor) -> None:
        """Add kernels (S, 1, k, k) to matrices (S, h * w, h * w) of any shape of as many elements."""
        for (row, column), diagonal in self.diagonals(weight):
            diagonal += kernel[:, 0, row, column, None, None]

    def gather(self, gradient: Tensor) -> Tensor:
        """Sum up what belongs to one tap, in matrices (S, h * w, h * w)."""
        taps = [diagonal.sum((1, 2)) for _, diagonal in self.diagonals(gradient)]
        return torch.stack(taps, 1).view(self.shape)

    def diagonals(self, matrices: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """Row and column of each tap, and a view (S, pixels, pixels) of its entries."""
        pairs = matrices.view(self.sets, self.h, self.w, self.h, self.w)
        middle = self.kernel_size // 2
        for row in range(self.kernel_size):
            for column in range(self.kernel_size):
                lines = pairs.diagonal(row - middle, 1, 3)
                yield (row, column), lines.diagonal(column - middle, 1, 2)


@dataclass(frozen=True)
class MiddleTap(Addend):
    """A pointwise convolution inside a larger one.

    Args:
        scale: What its output channels are multiplied by, shape (O,).
        in_channels: Number of input channels I.
    """

    scale: Tensor
    in_channels: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.scale.numel(), self.in_channels

    def add_to(self, weight: Tensor, kernel: Tensor) -> None:
        """Add a kernel (O, I) to one of (O, I, k, k)."""
        middle_of(weight).add_(kernel * self.scale.to(kernel)[:, None])

    def gather(self, gradient: Tensor) -> Tensor:
        """The gradient (O, I) from that of (O, I, k, k)."""
        return middle_of(gradient) * self.scale.to(gradient)[:, None]


@dataclass(frozen=True)
class IdentityTap(Addend):
    """A shortcut with a trainable scale for each channel, inside a convolution.

    Args:
        channels: Number of input and of output channels C.
    """

    channels: int

    @property
    def shape(self) -> tuple[int]:
        return (self.channels,)

    def add_to(self, weight: Tensor, kernel: Tensor) -> None:
        """Add scales (C,) to a kernel (C, C, k, k)."""
        middle_of(weight).diagonal().add_(kernel)

    def gather(self, gradient: Tensor) -> Tensor:
        """The gradient (C,) from that of (C, C, k, k)."""
        return middle_of(gradient).diagonal().clone()


@dataclass(frozen=True)
class LinearAddition:
    """What a weight is the sum of: ``M = scale * W + sum of E(k)``.

    Args:
        scale: Of the main part W, which has the shape of M; broadcasts against it.
        addends: The maps of the other parts.
    """

    scale: Tensor
    addends: Sequence[Addend]

    def fuse(self, weight: Tensor, kernels: Sequence[Tensor]) -> Tensor:
        """The weight M of parts W and kernels ("rule of initialization")."""
        fused = weight * self.scale.to(weight)
        for addend, kernel in zip(self.addends, kernels):
            addend.add_to(fused, kernel)
        return fused

    def split_gradient(self, gradient: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The gradients of W and of the kernels from that of M."""
        return gradient * self.scale.to(gradient), [addend.gather(gradient) for addend in self.addends]

    def transform(self, gradient: Tensor) -> Tensor:
        """What to hand to SGD for M, so that it moves M as it would by moving all parts ("rule of iteration")."""
        return self.fuse(*self.split_gradient(gradient))


def middle_of(kernel: Tensor) -> Tensor:
    """The view (O, I) of a kernel (O, I, h, w) at its middle."""
    return kernel[:, :, kernel.size(2) // 2, kernel.size(3) // 2]

# SPDX-License-Identifier: Apache-2.0
"""Weights that train as if they were sums: gradient re-parameterization (RepOptimizer, ICLR 2023).

A sum of linear operators with constant scales before one batch norm, ``bn(a * W(x) + b * E(k)(x))``, is one operator
with weight ``M = a * W + b * E(k)``, where E writes a small kernel into the shape of W. Training W and k changes M, and
this change can be computed from the gradient of M alone, so that W and k are not needed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Addend:
    """A linear map E that writes a kernel into a weight, perhaps times a constant.

    Attributes:
        shape: Shape of the kernel.
    """

    shape: tuple[int, ...]

    def add_to(self, weight: Tensor, kernel: Tensor) -> None:
        """Add ``E(kernel)`` to a weight, in place."""
        raise NotImplementedError

    def gather(self, gradient: Tensor) -> Tensor:
        """Compute the gradient of the kernel from that of the weight, by the adjoint of E."""
        raise NotImplementedError


@dataclass(frozen=True)
class TileTaps(Addend):
    """A depth-wise convolution with "same" zero padding, as a fully connected layer over the pixels of a tile.

    All pairs of pixels at the distance of a tap share it; they are a diagonal of the layer's matrix (RepMLPNet, paper
    section 3.3).

    Args:
        sets: Number of kernels S.
        kernel_size: Size k of the kernels in pixels, odd.
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
        """Sum up the entries of each tap in matrices (S, h * w, h * w)."""
        taps = [diagonal.sum((1, 2)) for _, diagonal in self.diagonals(gradient)]
        return torch.stack(taps, 1).view(self.shape)

    def diagonals(self, matrices: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """Yield row and column of each tap, and a view (S, pixels, pixels) of its entries."""
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
        scale: Factor of each output channel, shape (O,).
        in_channels: Number of input channels I.
    """

    scale: Tensor
    in_channels: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.scale.numel(), self.in_channels

    def add_to(self, weight: Tensor, kernel: Tensor) -> None:
        """Add a kernel (O, I) to one of shape (O, I, k, k)."""
        middle_of(weight).add_(kernel * self.scale.to(kernel)[:, None])

    def gather(self, gradient: Tensor) -> Tensor:
        """Compute the gradient (O, I) from one of shape (O, I, k, k)."""
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
        """Compute the gradient (C,) from one of shape (C, C, k, k)."""
        return middle_of(gradient).diagonal().clone()


@dataclass(frozen=True)
class LinearAddition:
    """The sum that a weight stands for: ``M = scale * W + sum of E(k)``.

    Args:
        scale: Scale of the main part W, which has the shape of M; broadcasts against it.
        addends: The maps E of the other parts.
    """

    scale: Tensor
    addends: Sequence[Addend]

    def fuse(self, weight: Tensor, kernels: Sequence[Tensor]) -> Tensor:
        """Compute the weight M from W and the kernels ("rule of initialization")."""
        fused = weight * self.scale.to(weight)
        for addend, kernel in zip(self.addends, kernels):
            addend.add_to(fused, kernel)
        return fused

    def split_gradient(self, gradient: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute the gradients of W and of the kernels from that of M."""
        return gradient * self.scale.to(gradient), [addend.gather(gradient) for addend in self.addends]

    def transform(self, gradient: Tensor) -> Tensor:
        """Compute the gradient with which SGD moves M as it would by moving all parts ("rule of iteration")."""
        return self.fuse(*self.split_gradient(gradient))


def middle_of(kernel: Tensor) -> Tensor:
    """Return the view (O, I) of a kernel (O, I, h, w) at its middle."""
    return kernel[:, :, kernel.size(2) // 2, kernel.size(3) // 2]

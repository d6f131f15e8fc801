# SPDX-License-Identifier: Apache-2.0
"""What the training forms of re-parameterizable convolutions are made of.

A branch maps (N, in_channels, H, W) to (N, out_channels, H', W'), and says in ``to_affine`` the kernel and the bias of
the one convolution that does the same.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrepmlp.models.common import ConvNorm, build_batch_norm
from mmrepmlp.reparam import Affine, affine, fuse_after, identity_kernel, to_float64

from .geometry import Geometry, pad


class CroppedConv2d(nn.Conv2d):
    """A convolution without bias whose padding may be negative."""

    def __init__(self, in_channels: int, out_channels: int, geometry: Geometry, groups: int) -> None:
        where = (geometry.kernel_size, geometry.stride, geometry.zeros, geometry.dilation)
        super().__init__(in_channels, out_channels, *where, groups=groups, bias=False)
        self.geometry = geometry

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return super().forward(self.geometry.crop(x))


class IdentityBranch(nn.Module):
    """A batch norm alone, which a convolution with a kernel of one pixel and a stride of 1 computes as well."""

    def __init__(self, channels: int, geometry: Geometry, groups: int, norm_cfg: dict) -> None:
        super().__init__()
        self.geometry, self.groups = geometry, groups
        self.bn = build_batch_norm(norm_cfg, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize."""
        return self.bn(pad(x, self.geometry.padding))

    def to_affine(self) -> Affine:
        """Kernel (C, C / groups, 1, 1) and bias (C,)."""
        norm = affine(self.bn)
        return fuse_after(Affine(identity_kernel(norm.weight, self.groups), torch.zeros_like(norm.bias)), norm)


class ChainBranch(nn.Module):
    """A pointwise convolution, a batch norm, and another branch behind it, which has no padding, but sees a border of
    what the former make of zeros."""

    def __init__(
        self,
        conv: nn.Module,
        inner_channels: int,
        branch: ConvNorm,
        geometry: Geometry,
        norm_cfg: dict,
        groups: int,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.first = nn.Sequential()
        self.first.add_module("conv", conv)
        self.first.add_module("bn", PaddingBatchNorm(inner_channels, geometry.zeros, norm_cfg))
        self.second = branch

    def forward(self, x: Tensor) -> Tensor:
        """Run both."""
        return self.second(self.first(x))

    def output_layers(self) -> list[nn.Module]:
        """The layers with a row for each output channel: those behind, and an average lets the first one's through."""
        own = [self.first.conv, self.first.bn.bn] if isinstance(self.second.conv, Average) else []
        return [*own, self.second.conv, self.second.bn]

    def to_affine(self) -> Affine:
        """Kernel (O, I / groups, h, w) and bias (O,)."""
        first, second = fuse_after(affine(self.first.conv), affine(self.first.bn.bn)), affine(self.second)
        matrices = first.weight.flatten(1).unflatten(0, (self.groups, -1))
        kernels = second.weight.unflatten(0, (self.groups, -1))
        kernel = torch.einsum("gomhw,gmi->goihw", kernels, matrices).flatten(0, 1)
        shift = torch.einsum("gomhw,gm->go", kernels, first.bias.unflatten(0, (self.groups, -1))).flatten()
        return Affine(kernel, shift + second.bias)


class Average(nn.Module):
    """The average over a window, zeros of the padding included; as a convolution, whose kernel is constant."""

    def __init__(self, channels: int, geometry: Geometry, groups: int) -> None:
        super().__init__()
        self.out_channels, self.geometry, self.groups = channels, geometry, groups

    def forward(self, x: Tensor) -> Tensor:
        """Average."""
        where = self.geometry
        x = pad(x, where.zeros)  # pooling pads by half a window at most
        if where.dilation == (1, 1):
            return F.avg_pool2d(x, where.kernel_size, where.stride)
        height, width = where.kernel_size
        kernel = x.new_full((x.size(1), 1, height, width), 1 / (height * width))
        return F.conv2d(x, kernel, None, where.stride, 0, where.dilation, x.size(1))

    def to_affine(self) -> Affine:
        """Kernel (C, C / groups, h, w), and no bias."""
        height, width = self.geometry.kernel_size
        ones = torch.ones(self.out_channels, dtype=torch.float64, device="cpu")
        kernel = identity_kernel(ones, self.groups).expand(-1, -1, height, width) / (height * width)
        return Affine(kernel, torch.zeros_like(ones))


class IdentityBasedConv(nn.Module):
    """A pointwise convolution whose weight is added to the identity, where it starts."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.zeros(channels, channels // groups, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return F.conv2d(x, self.weight + identity_kernel(self.weight, self.groups), groups=self.groups)

    def to_affine(self) -> Affine:
        """Kernel (C, C / groups, 1, 1), and no bias."""
        weight = to_float64(self.weight)
        return Affine(weight + identity_kernel(weight, self.groups), torch.zeros_like(weight[:, 0, 0, 0]))


class PaddingBatchNorm(nn.Module):
    """A batch norm, and a border of what its running statistics make of zero.

    A convolution before it then sees a border of zeros, so that padding and norm can change places.
    """

    def __init__(self, channels: int, padding: tuple[int, int], norm_cfg: dict) -> None:
        super().__init__()
        self.padding = padding
        self.bn = build_batch_norm(norm_cfg, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and pad."""
        x = self.bn(x)
        if self.padding == (0, 0):
            return x
        border = affine(self.bn).bias.detach().to(x).view(1, -1, 1, 1)
        return pad(x - border, self.padding) + border

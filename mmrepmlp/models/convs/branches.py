# SPDX-License-Identifier: Apache-2.0
"""The branches of re-parameterizable convolutions in training form.

A branch maps (N, in_channels, H, W) to (N, out_channels, H', W'). Its ``to_affine`` returns the kernel and bias of the
equivalent convolution.
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
        settings = (geometry.kernel_size, geometry.stride, geometry.zeros, geometry.dilation)
        super().__init__(in_channels, out_channels, *settings, groups=groups, bias=False)
        self.geometry = geometry

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return super().forward(self.geometry.crop(x))


class IdentityBranch(nn.Module):
    """A batch norm without a convolution, equivalent to a pointwise convolution with stride 1."""

    def __init__(self, channels: int, geometry: Geometry, groups: int, norm_cfg: dict) -> None:
        super().__init__()
        self.geometry, self.groups = geometry, groups
        self.bn = build_batch_norm(norm_cfg, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize."""
        return self.bn(pad(x, self.geometry.padding))

    def to_affine(self) -> Affine:
        """Return a kernel (C, C / groups, 1, 1) and a bias (C,)."""
        norm = affine(self.bn)
        return fuse_after(Affine(identity_kernel(norm.weight, self.groups), torch.zeros_like(norm.bias)), norm)


class ChainBranch(nn.Module):
    """A pointwise convolution and a batch norm, followed by another branch.

    The second branch has no padding: the batch norm pads its own output.
    """

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
        """Run both parts."""
        return self.second(self.first(x))

    def output_layers(self) -> list[nn.Module]:
        """Return the layers with a row for each output channel: those of the second part, and those of the first if an
        average follows, which keeps the channels."""
        first = [self.first.conv, self.first.bn.bn] if isinstance(self.second.conv, Average) else []
        return [*first, self.second.conv, self.second.bn]

    def to_affine(self) -> Affine:
        """Return a kernel (O, I / groups, h, w) and a bias (O,)."""
        first, second = fuse_after(affine(self.first.conv), affine(self.first.bn.bn)), affine(self.second)
        matrices = first.weight.flatten(1).unflatten(0, (self.groups, -1))
        kernels = second.weight.unflatten(0, (self.groups, -1))
        kernel = torch.einsum("gomhw,gmi->goihw", kernels, matrices).flatten(0, 1)
        shift = torch.einsum("gomhw,gm->go", kernels, first.bias.unflatten(0, (self.groups, -1))).flatten()
        return Affine(kernel, shift + second.bias)


class Average(nn.Module):
    """The average over a window, including the zeros of the padding: a convolution with a constant kernel."""

    def __init__(self, channels: int, geometry: Geometry, groups: int) -> None:
        super().__init__()
        self.out_channels, self.geometry, self.groups = channels, geometry, groups

    def forward(self, x: Tensor) -> Tensor:
        """Average."""
        geometry = self.geometry
        x = pad(x, geometry.zeros)  # pooling pads by half a window at most
        if geometry.dilation == (1, 1):
            return F.avg_pool2d(x, geometry.kernel_size, geometry.stride)
        height, width = geometry.kernel_size
        kernel = x.new_full((x.size(1), 1, height, width), 1 / (height * width))
        return F.conv2d(x, kernel, None, geometry.stride, 0, geometry.dilation, x.size(1))

    def to_affine(self) -> Affine:
        """Return a kernel (C, C / groups, h, w) and a bias of zeros."""
        height, width = self.geometry.kernel_size
        ones = torch.ones(self.out_channels, dtype=torch.float64, device="cpu")
        kernel = identity_kernel(ones, self.groups).expand(-1, -1, height, width) / (height * width)
        return Affine(kernel, torch.zeros_like(ones))


class IdentityBasedConv(nn.Module):
    """A pointwise convolution that adds its weight, zero at first, to the identity."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.zeros(channels, channels // groups, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return F.conv2d(x, self.weight + identity_kernel(self.weight, self.groups), groups=self.groups)

    def to_affine(self) -> Affine:
        """Return a kernel (C, C / groups, 1, 1) and a bias of zeros."""
        weight = to_float64(self.weight)
        return Affine(weight + identity_kernel(weight, self.groups), torch.zeros_like(weight[:, 0, 0, 0]))


class PaddingBatchNorm(nn.Module):
    """A batch norm that pads its output with the values that it maps zero to, by its running statistics.

    This is equivalent to padding the input of the pointwise convolution before it with zeros.
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

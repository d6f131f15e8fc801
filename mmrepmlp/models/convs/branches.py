# SPDX-License-Identifier: Apache-2.0
"""What the training forms of re-parameterizable convolutions are made of.

A branch maps (N, in_channels, H, W) to (N, out_channels, H', W'), and knows the kernel and the bias of the one
convolution that does the same, float64 and differentiable.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrepmlp.models.layers import build_batch_norm
from mmrepmlp.reparam import fold_after, scale_and_shift

from .geometry import Geometry, pad

Equivalent = tuple[Tensor, Tensor]


class ConvBranch(nn.Module):
    """A convolution or an average, and a batch norm.

    Args:
        conv: Convolution of a cropped map.
        channels: Number of its output channels.
        geometry: Where it looks.
        norm_cfg: Config of the batch norm.
    """

    def __init__(self, conv: nn.Module, channels: int, geometry: Geometry, norm_cfg: dict) -> None:
        super().__init__()
        self.geometry = geometry
        self.conv = conv
        self.bn = build_batch_norm(norm_cfg, channels)

    @property
    def last_norm(self) -> nn.Module:
        return self.bn

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalize."""
        return self.bn(self.conv(self.geometry.crop(x)))

    def get_equivalent_kernel_bias(self) -> Equivalent:
        """Kernel (O, I / groups, h, w) and bias (O,)."""
        kernel, bias = kernel_of(self.conv), getattr(self.conv, "bias", None)
        if isinstance(self.bn, nn.Identity):  # mmcv.cnn.fuse_conv_bn was here
            return kernel.double(), bias.double()
        scale, shift = scale_and_shift(self.bn)
        return fold_after(kernel.to(scale.device), bias, scale, shift)


class IdentityBranch(nn.Module):
    """A batch norm alone.

    Args:
        channels: Number of channels.
        geometry: Where a convolution with a kernel of one pixel looks; its stride is 1.
        groups: Number of groups of that convolution.
        norm_cfg: Config of the batch norm.
    """

    def __init__(self, channels: int, geometry: Geometry, groups: int, norm_cfg: dict) -> None:
        super().__init__()
        self.geometry, self.groups = geometry, groups
        self.bn = build_batch_norm(norm_cfg, channels)

    @property
    def last_norm(self) -> nn.Module:
        return self.bn

    def forward(self, x: Tensor) -> Tensor:
        """Normalize."""
        return self.bn(pad(x, self.geometry.padding))

    def get_equivalent_kernel_bias(self) -> Equivalent:
        """Kernel (C, C / groups, 1, 1) and bias (C,)."""
        return fold_after(identity_kernel(self.bn.running_var, self.groups), None, *scale_and_shift(self.bn))


class ChainBranch(nn.Module):
    """A pointwise convolution and another branch behind it, which sees a border of what the former makes of zeros.

    Args:
        conv: The pointwise convolution.
        inner_channels: Number of its output channels.
        branch: What follows, without padding.
        geometry: Where the whole looks.
        norm_cfg: Config of the batch norm in between.
        groups: Number of groups of both.
    """

    def __init__(
        self,
        conv: nn.Module,
        inner_channels: int,
        branch: ConvBranch,
        geometry: Geometry,
        norm_cfg: dict,
        groups: int,
    ) -> None:
        super().__init__()
        self.geometry, self.groups = geometry, groups
        self.first = nn.Sequential()
        self.first.add_module("conv", conv)
        self.first.add_module("bn", PaddingBatchNorm(inner_channels, geometry.zeros, norm_cfg))
        self.second = branch

    @property
    def last_norm(self) -> nn.Module:
        return self.second.bn

    def forward(self, x: Tensor) -> Tensor:
        """Run both."""
        return self.second(self.first(self.geometry.crop(x)))

    def get_equivalent_kernel_bias(self) -> Equivalent:
        """Kernel (O, I / groups, h, w) and bias (O,)."""
        first = fold_after(kernel_of(self.first.conv), None, *scale_and_shift(self.first.bn.bn))
        kernel, bias = self.second.get_equivalent_kernel_bias()
        composed, shift = compose(*first, kernel, self.groups)
        return composed, shift + bias


class Average(nn.Module):
    """The average over a window, zeros of the padding included; as a convolution, whose kernel is constant.

    Args:
        channels: Number of channels.
        geometry: Where the window is.
        groups: Number of groups of the convolution.
    """

    def __init__(self, channels: int, geometry: Geometry, groups: int) -> None:
        super().__init__()
        self.channels, self.geometry, self.groups = channels, geometry, groups

    def forward(self, x: Tensor) -> Tensor:
        """Average a cropped map."""
        where = self.geometry
        x = pad(x, where.zeros)  # pooling pads by half a window at most
        if where.dilation == (1, 1):
            return F.avg_pool2d(x, where.kernel_size, where.stride)
        height, width = where.kernel_size
        kernel = x.new_full((x.size(1), 1, height, width), 1 / (height * width))
        return F.conv2d(x, kernel, None, where.stride, 0, where.dilation, x.size(1))

    @property
    def kernel(self) -> Tensor:
        """Shape (C, C / groups, h, w), float64."""
        height, width = self.geometry.kernel_size
        like = torch.ones(self.channels, dtype=torch.float64, device="cpu")
        return identity_kernel(like, self.groups).expand(-1, -1, height, width) / (height * width)


class IdentityBasedConv(nn.Module):
    """A pointwise convolution whose weight is added to the identity, where it starts.

    Args:
        channels: Number of channels.
        groups: Number of groups.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.zeros(channels, channels // groups, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return F.conv2d(x, self.kernel, groups=self.groups)

    @property
    def kernel(self) -> Tensor:
        """Shape (C, C / groups, 1, 1)."""
        return self.weight + identity_kernel(self.weight, self.groups)


class PaddingBatchNorm(nn.Module):
    """A batch norm, and a border of what its running statistics make of zero.

    A convolution before it then sees a border of zeros, so that padding and norm can change places.

    Args:
        channels: Number of channels.
        padding: Pixels above and below, left and right.
        norm_cfg: Config of the batch norm.
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
        border = scale_and_shift(self.bn)[1].detach().to(x.dtype).view(1, -1, 1, 1)
        return pad(x - border, self.padding) + border


def identity_kernel(like: Tensor, groups: int) -> Tensor:
    """The kernel (C, C / groups, 1, 1) of a convolution that changes nothing; ``like`` has C channels first."""
    channels = like.size(0)
    return torch.eye(channels // groups, dtype=like.dtype, device=like.device).repeat(groups, 1)[..., None, None]


def kernel_of(conv: nn.Module) -> Tensor:
    """What a convolution multiplies by."""
    return conv.weight if isinstance(conv, nn.Conv2d) else conv.kernel


def compose(kernel: Tensor, bias: Tensor, second: Tensor, groups: int) -> Equivalent:
    """Kernel and bias of a pointwise convolution and another one behind it, of as many groups."""
    first, grouped = kernel.flatten(1).unflatten(0, (groups, -1)), second.unflatten(0, (groups, -1))
    composed = torch.einsum("gomhw,gmi->goihw", grouped, first).flatten(0, 1)
    shift = torch.einsum("gomhw,gm->go", grouped, bias.unflatten(0, (groups, -1))).flatten()
    return composed, shift

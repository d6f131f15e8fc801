# SPDX-License-Identifier: Apache-2.0
"""Convolutions, each with the batch norm that it absorbs in deploy form."""

import torch.nn.functional as F
from torch import Tensor, nn

from mmrepmlp.reparam import Reparameterizable, fold_after, fold_before, scale_and_shift, set_weight_and_bias

from .norm import build_batch_norm
from .tiling import count_tiles
from .tracing import is_symbolic


def pad_to_multiple(x: Tensor, h: int, w: int) -> Tensor:
    """Pad a map (..., H, W) with zeros at the bottom and the right to whole multiples of ``h`` by ``w``."""
    if h == w == 1:  # nothing for an exporter to record where the size is symbolic
        return x
    bottom, right = (count_tiles(size, side) * side - size for size, side in zip(x.shape[-2:], (h, w)))
    if not is_symbolic(bottom) and not is_symbolic(right) and not bottom and not right:
        return x
    return F.pad(x, (0, right, 0, bottom))


Layer = tuple[Tensor, Tensor]  # weight and bias


def with_following_norm(conv: nn.Conv2d, norm: nn.Module) -> Layer:
    """Weight and bias of a convolution and the batch norm behind it as one; differentiable. An identity is no norm."""
    if isinstance(norm, nn.Identity):
        return conv.weight, conv.bias
    return fold_after(conv.weight, conv.bias, *scale_and_shift(norm))


def with_preceding_norm(norm: nn.Module, weight: Tensor, bias: Tensor | None) -> Layer:
    """Weight and bias of a pointwise convolution and the batch norm in front of it as one; differentiable."""
    return (weight, bias) if isinstance(norm, nn.Identity) else fold_before(weight, bias, *scale_and_shift(norm))


class NormedConv(nn.Module, Reparameterizable):
    """A convolution, the batch norm behind it, gone in deploy form, and perhaps a ReLU.

    Args:
        conv: The convolution, with a bias in deploy form.
        norm_cfg: Config of the batch norm.
        relu: Whether a ReLU follows.
        deploy: Whether to build the deploy form.
    """

    def __init__(self, conv: nn.Conv2d, norm_cfg: dict, relu: bool, deploy: bool) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.Identity() if deploy else build_batch_norm(norm_cfg, conv.out_channels)
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()

    @property
    def deploy(self) -> bool:
        return isinstance(self.bn, nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) as the convolution does."""
        return self.relu(self.bn(self.conv(x)))

    def get_equivalent_conv(self) -> Layer:
        """Weight and bias of convolution and norm as one."""
        return with_following_norm(self.conv, self.bn)

    def switch_to_deploy(self) -> None:
        """Fold the batch norm into the convolution, in place."""
        if not self.deploy:
            set_weight_and_bias(self.conv, *self.get_equivalent_conv(), [self.bn])
            self.bn = nn.Identity().train(self.bn.training)


class ConvBN(NormedConv):
    """A convolution whose stride is its kernel size, its batch norm and a ReLU; without the norm in deploy form.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel_size: Side of the kernel in pixels, and the stride.
        norm_cfg: Config of the batch norm.
        relu: Whether a ReLU follows.
        deploy: Whether to build the deploy form.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, norm_cfg: dict, relu: bool, deploy: bool = False
    ) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=kernel_size, bias=deploy)
        super().__init__(conv, norm_cfg, relu, deploy)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, ceil(H / stride), ceil(W / stride)); an odd row or column is padded, not lost."""
        return super().forward(pad_to_multiple(x, *self.conv.stride))


class PaddedConvBN(NormedConv):
    """A convolution padded by zeros so that a stride of 1 keeps the size of a map, its batch norm and a ReLU.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel_size: Side of the kernel in pixels, odd.
        stride: Distance of the outputs in pixels. Default: 1.
        dilation: Distance of neighbouring taps in pixels. Default: 1.
        groups: Number of groups. Default: 1.
        norm_cfg: Config of the batch norm.
        relu: Whether a ReLU follows. Default: True.
        deploy: Whether to build the deploy form. Default: False.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        norm_cfg: dict,
        relu: bool = True,
        deploy: bool = False,
    ) -> None:
        padding = dilation * (kernel_size // 2)
        where = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        super().__init__(nn.Conv2d(*where, bias=deploy), norm_cfg, relu, deploy)


class PatchEmbed(nn.Module, Reparameterizable):
    """Cut an image into patches and embed each: convolution, batch norm, ReLU (paper section 3.5).

    Args:
        in_channels: Number of image channels.
        channels: Number of channels of the embedding.
        patch_size: Height and width of a patch in pixels.
        norm_cfg: Config of the batch norm.
        deploy: Whether to build the deploy form.
    """

    def __init__(
        self, in_channels: int, channels: int, patch_size: tuple[int, int], norm_cfg: dict, deploy: bool = False
    ) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, channels, patch_size, stride=patch_size, bias=deploy)
        self.norm = nn.Identity() if deploy else build_batch_norm(norm_cfg, channels)

    @property
    def deploy(self) -> bool:
        return isinstance(self.norm, nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, C, ceil(H / patch height), ceil(W / patch width))."""
        return F.relu(self.norm(self.projection(pad_to_multiple(x, *self.projection.stride))), inplace=True)

    def get_equivalent_conv(self) -> Layer:
        """Weight and bias of projection and norm as one."""
        return with_following_norm(self.projection, self.norm)

    def switch_to_deploy(self) -> None:
        """Fold the batch norm into the projection, in place."""
        if not self.deploy:
            set_weight_and_bias(self.projection, *self.get_equivalent_conv(), [self.norm])
            self.norm = nn.Identity().train(self.norm.training)

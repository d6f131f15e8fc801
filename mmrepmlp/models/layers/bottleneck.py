# SPDX-License-Identifier: Apache-2.0
"""The residual blocks of RepMLP-ResNet (arXiv 2105.01883, section 3.4 and appendix A), with the authors' names."""

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from .conv import PaddedConvBN
from .recompute import recompute
from .v1_block import RepMLPv1Block


class ResidualBlock(BaseModule):
    """Layers beside a shortcut; a ReLU follows the sum.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        stride: Distance of the outputs in pixels. Default: 1.
        norm_cfg: Config of the batch norms.
        with_cp: Whether to recompute activations in the backward pass to save memory. Default: False.
        deploy: Whether to build the deploy form. Default: False.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        norm_cfg: dict,
        with_cp: bool = False,
        deploy: bool = False,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.relu = nn.ReLU(inplace=True)
        if stride == 1 and in_channels == out_channels:
            self.shortcut = nn.Identity()
        else:
            settings = dict(stride=stride, norm_cfg=norm_cfg, relu=False, deploy=deploy)
            self.shortcut = PaddedConvBN(in_channels, out_channels, 1, **settings)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, ceil(H / stride), ceil(W / stride))."""
        if self.with_cp and self.training and torch.is_grad_enabled():
            return recompute(self, self.compute, x)
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        """The forward pass, which may run twice."""
        return self.relu(self.transform(x) + self.shortcut(x))

    def transform(self, x: Tensor) -> Tensor:
        """The layers beside the shortcut."""
        raise NotImplementedError


class PlainBottleneck(ResidualBlock):
    """ResNet-50's own block, with the stride on the 3x3 convolution.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels; four times as many as inside.
        stride: Distance of the outputs in pixels. Default: 1.
        dilation: Distance of neighbouring taps of the 3x3 convolution in pixels. Default: 1.
        **settings: ``norm_cfg``, ``with_cp`` and ``deploy`` of :class:`ResidualBlock`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1, **settings: object
    ) -> None:
        super().__init__(in_channels, out_channels, stride, **settings)
        inside, conv = out_channels // 4, conv_settings(**settings)
        self.conv1 = PaddedConvBN(in_channels, inside, 1, **conv)
        self.conv2 = PaddedConvBN(inside, inside, 3, stride=stride, dilation=dilation, **conv)
        self.conv3 = PaddedConvBN(inside, out_channels, 1, relu=False, **conv)

    def transform(self, x: Tensor) -> Tensor:
        """A 1x1, a 3x3 and a 1x1 convolution."""
        return self.conv3(self.conv2(self.conv1(x)))


class RepMLPLightBlock(ResidualBlock):
    """RepMLP between two 1x1 convolutions, on an eighth of the channels (appendix A).

    Args:
        channels: Number of input and output channels.
        repmlp: Further arguments of :class:`RepMLPv1Block`.
        **settings: ``norm_cfg``, ``with_cp`` and ``deploy`` of :class:`ResidualBlock`.
    """

    def __init__(self, channels: int, repmlp: dict, **settings: object) -> None:
        super().__init__(channels, channels, **settings)
        inside, conv = channels // 8, conv_settings(**settings)
        self.light_conv1 = PaddedConvBN(channels, inside, 1, **conv)
        self.light_repmlp = RepMLPv1Block(inside, inside, **repmlp, **conv)
        self.light_conv3 = PaddedConvBN(inside, channels, 1, relu=False, **conv)

    def transform(self, x: Tensor) -> Tensor:
        """A 1x1 convolution, RepMLP and a 1x1 convolution."""
        return self.light_conv3(self.relu(self.light_repmlp(self.light_conv1(x))))


class RepMLPBottleneck(ResidualBlock):
    """RepMLP between two 3x3 convolutions, which reduce the channels once more, and these between 1x1 ones
    (section 3.4).

    Args:
        channels: Number of input and output channels, four times as many as behind the first convolution.
        reduction: What the 3x3 convolutions divide the number of channels by.
        repmlp: Further arguments of :class:`RepMLPv1Block`.
        **settings: ``norm_cfg``, ``with_cp`` and ``deploy`` of :class:`ResidualBlock`.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(self, channels: int, reduction: int, repmlp: dict, **settings: object) -> None:
        super().__init__(channels, channels, **settings)
        outer, conv = channels // 4, conv_settings(**settings)
        inner = outer // reduction
        if not inner:
            raise ValueError(f"reduction={reduction}: expected at most {outer}, the number of channels to divide.")
        self.btnk_conv1 = PaddedConvBN(channels, outer, 1, **conv)
        self.btnk_conv2 = PaddedConvBN(outer, inner, 3, **conv)
        self.btnk_repmlp = RepMLPv1Block(inner, inner, **repmlp, **conv)
        self.btnk_conv4 = PaddedConvBN(inner, outer, 3, **conv)
        self.btnk_conv5 = PaddedConvBN(outer, channels, 1, relu=False, **conv)

    def transform(self, x: Tensor) -> Tensor:
        """A 1x1 and a 3x3 convolution, RepMLP, a 3x3 and a 1x1 convolution."""
        x = self.relu(self.btnk_repmlp(self.btnk_conv2(self.btnk_conv1(x))))
        return self.btnk_conv5(self.btnk_conv4(x))


def conv_settings(norm_cfg: dict, deploy: bool = False, with_cp: bool = False) -> dict[str, object]:
    """What a residual block's settings mean for its convolutions."""
    return dict(norm_cfg=norm_cfg, deploy=deploy)

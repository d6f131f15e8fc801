# SPDX-License-Identifier: Apache-2.0
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from mmrepmlp.reparam import set_weight_and_bias

from .conv import with_preceding_norm


class PixelConv(nn.Conv2d):
    """A pointwise convolution of maps of one pixel, (N, C, 1, 1), computed as the matrix product that it is.

    For so little work a convolution spends several times as long on its preparations.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, 1, 1) to (N, O, 1, 1)."""
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[..., None, None]


class GlobalPerceptron(nn.Module):
    """Gate the channels by what the whole map shows (paper section 3.1): average, squeeze, excite.

    Args:
        channels: Number of channels.
        ratio: What to divide ``channels`` by for the width of the bottleneck.
    """

    def __init__(self, channels: int, ratio: int = 4) -> None:
        super().__init__()
        pixel = dict(type=PixelConv)
        self.conv1 = ConvModule(channels, channels // ratio, 1, conv_cfg=pixel, act_cfg=dict(type="ReLU"))
        self.conv2 = ConvModule(channels // ratio, channels, 1, conv_cfg=pixel, act_cfg=dict(type="Sigmoid"))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to gates between 0 and 1 of shape (N, C, 1, 1)."""
        return self.conv2(self.conv1(x.mean((2, 3), keepdim=True)))

    def absorb(self, norm: nn.Module) -> None:
        """Fold a batch norm in front into the first layer, in place; the average commutes with it."""
        conv = self.conv1.conv
        set_weight_and_bias(conv, *with_preceding_norm(norm, conv.weight, conv.bias))

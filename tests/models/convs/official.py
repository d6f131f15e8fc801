# SPDX-License-Identifier: Apache-2.0
"""The authors' three structures, built from their description with their names: references for tests."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn(in_channels, out_channels, kernel, stride, padding, groups) -> nn.Sequential:
    result = nn.Sequential()
    result.add_module("conv", nn.Conv2d(in_channels, out_channels, kernel, stride, padding, 1, groups, bias=False))
    result.add_module("bn", nn.BatchNorm2d(out_channels))
    return result


class OfficialACB(nn.Module):
    """Square, vertical and horizontal convolutions; cropped where the padding is less than half a kernel."""

    def __init__(self, in_channels, out_channels, kernel, stride, padding, groups) -> None:
        super().__init__()
        self.middle, self.padding = kernel // 2, padding

        def conv(size, border):
            return nn.Conv2d(in_channels, out_channels, size, stride, border, 1, groups, bias=False)

        side, rest = max(padding - self.middle, 0), padding
        self.square_conv, self.square_bn = conv(kernel, padding), nn.BatchNorm2d(out_channels)
        self.ver_conv, self.ver_bn = conv((kernel, 1), (rest, side)), nn.BatchNorm2d(out_channels)
        self.hor_conv, self.hor_bn = conv((1, kernel), (side, rest)), nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        crop = max(self.middle - self.padding, 0)
        height, width = x.shape[2:]
        vertical, horizontal = x[..., crop : width - crop], x[:, :, crop : height - crop]
        out = self.square_bn(self.square_conv(x)) + self.ver_bn(self.ver_conv(vertical))
        return out + self.hor_bn(self.hor_conv(horizontal))


class BNAndPad(nn.Module):
    def __init__(self, channels, padding) -> None:
        super().__init__()
        self.bn, self.padding = nn.BatchNorm2d(channels), padding

    def forward(self, x: Tensor) -> Tensor:
        out, bn = self.bn(x), self.bn
        zero = (bn.bias - bn.running_mean * bn.weight / torch.sqrt(bn.running_var + bn.eps)).detach()
        padded = F.pad(out, [self.padding] * 4)
        border = torch.ones_like(padded[:1, :1])
        border[..., self.padding : -self.padding, self.padding : -self.padding] = 0
        return padded + border * zero.view(1, -1, 1, 1)


class IdentityBasedConv1x1(nn.Conv2d):
    def __init__(self, channels, groups) -> None:
        super().__init__(channels, channels, 1, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


class OfficialDBB(nn.Module):
    """The four branches for padding by half a kernel; of a depthwise convolution three."""

    def __init__(self, in_channels, out_channels, kernel, stride, padding, groups, inner_channels=None) -> None:
        super().__init__()
        depthwise = groups == out_channels
        inner = inner_channels or in_channels * (2 if depthwise else 1)
        self.dbb_origin = conv_bn(in_channels, out_channels, kernel, stride, padding, groups)
        self.dbb_avg = nn.Sequential()
        if not depthwise:
            self.dbb_1x1 = conv_bn(in_channels, out_channels, 1, stride, 0, groups)
            self.dbb_avg.add_module("conv", nn.Conv2d(in_channels, out_channels, 1, groups=groups, bias=False))
            self.dbb_avg.add_module("bn", BNAndPad(out_channels, padding))
        self.dbb_avg.add_module("avg", nn.AvgPool2d(kernel, stride, padding if depthwise else 0))
        self.dbb_avg.add_module("avgbn", nn.BatchNorm2d(out_channels))
        self.dbb_1x1_kxk = nn.Sequential()
        if inner == in_channels:
            self.dbb_1x1_kxk.add_module("idconv1", IdentityBasedConv1x1(in_channels, groups))
        else:
            self.dbb_1x1_kxk.add_module("conv1", nn.Conv2d(in_channels, inner, 1, groups=groups, bias=False))
        self.dbb_1x1_kxk.add_module("bn1", BNAndPad(inner, padding))
        conv = nn.Conv2d(inner, out_channels, kernel, stride, groups=groups, bias=False)
        self.dbb_1x1_kxk.add_module("conv2", conv)
        self.dbb_1x1_kxk.add_module("bn2", nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return sum(branch(x) for branch in self.children())


class OfficialRepVGG(nn.Module):
    """A convolution, a pointwise one, a batch norm."""

    def __init__(self, in_channels, out_channels, kernel, stride, padding, groups) -> None:
        super().__init__()
        self.rbr_dense = conv_bn(in_channels, out_channels, kernel, stride, padding, groups)
        self.rbr_1x1 = conv_bn(in_channels, out_channels, 1, stride, padding - kernel // 2, groups)
        if in_channels == out_channels and stride == 1:
            self.rbr_identity = nn.BatchNorm2d(in_channels)

    def forward(self, x: Tensor) -> Tensor:
        return sum(branch(x) for branch in self.children())

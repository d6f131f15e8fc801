# SPDX-License-Identifier: Apache-2.0
"""The blocks of RepOptVGG: the one that is trained, and the one that finds the scales to train with."""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from mmrepmlp.reparam import (
    Addend,
    Affine,
    IdentityTap,
    LinearAddition,
    MiddleTap,
    Reparameterizable,
    affine,
    fuse_after,
    identity_kernel,
    sum_kernels,
)

from ..common import ConvNorm, build_batch_norm, recompute, refuse_fx

Scales = Mapping[str, Tensor]  # of the parts "conv", "1x1" and, where there is a shortcut, "identity"; each (O,)


class RepOptBlock(ConvNorm):
    """A 3x3 convolution, a batch norm and a ReLU (RepOptimizer, ICLR 2023, section 3.2).

    With scales, its kernel stands for the sum of a 3x3 kernel, a pointwise one and a shortcut, each times a constant.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        stride: As in nn.Conv2d. Default: 1.
        norm_cfg: Config of the batch norm. Default: ``dict(type='BN', requires_grad=True)``.
        with_cp: Whether to recompute activations in the backward pass to save memory. Default: False.
        deploy: Whether to build the deploy form. Default: False.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        norm_cfg: dict = dict(type="BN", requires_grad=True),
        with_cp: bool = False,
        deploy: bool = False,
    ) -> None:
        conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=deploy)
        super().__init__(conv, norm_cfg, relu=True, deploy=deploy)
        self.with_cp, self.has_shortcut = with_cp, in_channels == out_channels and stride == 1
        self.scales: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, ceil(H / stride), ceil(W / stride))."""
        return recompute(self, super().forward, x)

    def scale_shapes(self) -> dict[str, tuple[int]]:
        """Return the shapes of the scales, by name."""
        parts = ("conv", "1x1", "identity") if self.has_shortcut else ("conv", "1x1")
        return dict.fromkeys(parts, (self.conv.out_channels,))

    @torch.no_grad()
    def set_scales(self, scales: Scales, initialize: bool) -> None:
        """Let the convolution stand for a sum with these scales, and optionally initialize it as the sum of initial
        parts ("rule of initialization")."""
        self.scales = {name: scales[name].detach().to(self.conv.weight) for name in self.scale_shapes()}
        if initialize:
            self.restart(self.linear_additions())

    @torch.no_grad()
    def restart(self, initialized: Collection[str] = ()) -> None:
        """Add the initial values of the other parts to those of the convolution."""
        for addition in [self.linear_additions()[name] for name in initialized]:
            pointwise = nn.Conv2d(self.conv.in_channels, self.conv.out_channels, 1, bias=False).weight
            parts = [pointwise.to(self.conv.weight)[:, :, 0, 0], self.scales.get("identity")]
            self.conv.weight.copy_(addition.fuse(self.conv.weight, parts))

    def linear_additions(self) -> dict[str, LinearAddition]:
        """Return the sums that parameters stand for, by name, where gradients are re-parameterized."""
        if not self.scales or self.fused:
            return {}
        addends: list[Addend] = [MiddleTap(self.scales["1x1"], self.conv.in_channels)]
        if self.has_shortcut:
            addends.append(IdentityTap(self.conv.in_channels))
        return {"conv.weight": LinearAddition(self.scales["conv"].view(-1, 1, 1, 1), addends)}


class ChannelScale(nn.Module):
    """A trainable factor for each channel."""

    def __init__(self, channels: int, init: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x * self.weight.view(-1, 1, 1)


class LinearAddBlock(Reparameterizable):
    """The block of the hyper-search for scales (RepOptimizer, ICLR 2023, section 3.3).

    It adds up a 3x3 convolution, a pointwise one and a shortcut, each times a trainable scale; a batch norm and a ReLU
    follow.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        stride: As in nn.Conv2d. Default: 1.
        scale_init: Initial scale of the convolutions; that of the shortcut is 1. Default: 1.
        norm_cfg: Config of the batch norm. Default: ``dict(type='BN', requires_grad=True)``.
        with_cp: Whether to recompute activations in the backward pass to save memory. Default: False.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        scale_init: float = 1.0,
        norm_cfg: dict = dict(type="BN", requires_grad=True),
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.with_cp, self.has_shortcut = with_cp, in_channels == out_channels and stride == 1
        # The norm comes first: mmcv.cnn.fuse_conv_bn fuses a norm that is registered after a convolution into that.
        self.bn = build_batch_norm(norm_cfg, out_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.scale_conv = ChannelScale(out_channels, scale_init)
        self.conv_1x1 = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        self.scale_1x1 = ChannelScale(out_channels, scale_init)
        if self.has_shortcut:
            self.scale_identity = ChannelScale(out_channels, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, ceil(H / stride), ceil(W / stride))."""
        return recompute(self, self.compute, x)

    def compute(self, x: Tensor) -> Tensor:
        """Run the forward pass, twice where activations are recomputed."""
        if self.fused:
            return self.relu(self.bn(self.conv(x)))
        refuse_fx(self, x)
        out = self.scale_conv(self.conv(x)) + self.scale_1x1(self.conv_1x1(x))
        if self.has_shortcut:
            out = out + self.scale_identity(x)
        return self.relu(self.bn(out))

    def equivalents(self) -> dict[str, Affine]:
        """Return the 3x3 convolution, with all that comes before the ReLU fused into it."""
        if self.fused:
            return {"conv": affine(self.conv)}
        parts = [
            fuse_after(affine(self.conv), affine(self.scale_conv)),
            fuse_after(affine(self.conv_1x1), affine(self.scale_1x1)),
        ]
        if self.has_shortcut:
            scale = affine(self.scale_identity)
            parts.append(fuse_after(Affine(identity_kernel(scale.weight), scale.bias), scale))
        return {"conv": fuse_after(sum_kernels(parts), affine(self.bn))}

    def vanishing(self) -> Iterable[str]:
        """Return the names of the batch norm, of the pointwise convolution and of the scales."""
        scales = ["scale_conv", "scale_1x1", *(["scale_identity"] if self.has_shortcut else [])]
        return ["bn", "conv_1x1", *scales]

# SPDX-License-Identifier: Apache-2.0
"""The blocks of RepOptVGG: what is trained, and what finds the scales to train it by."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mmrepmlp.reparam import Addend, IdentityTap, LinearAddition, MiddleTap, fold_after, scale_and_shift

from .conv import Layer, PaddedConvBN

Scales = Mapping[str, Tensor]  # of the parts "conv", "1x1" and, where there is a shortcut, "identity"; each (O,)


class RepOptBlock(PaddedConvBN):
    """A 3x3 convolution, a batch norm and a ReLU (RepOptimizer, ICLR 2023, section 3.2).

    With scales, the convolution stands for the sum of itself, a pointwise one and a shortcut, each times a constant.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        stride: Distance of the outputs in pixels. Default: 1.
        norm_cfg: Config of the batch norm. Default: ``dict(type='BN', requires_grad=True)``.
        deploy: Whether to build the deploy form. Default: False.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        norm_cfg: dict = dict(type="BN", requires_grad=True),
        deploy: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, 3, stride=stride, norm_cfg=norm_cfg, deploy=deploy)
        self.norm_cfg = norm_cfg
        self.has_shortcut = in_channels == out_channels and stride == 1
        self.scales: dict[str, Tensor] = {}

    def scale_shapes(self) -> dict[str, tuple[int]]:
        """Which scales the block has, and their shapes."""
        parts = ("conv", "1x1", "identity") if self.has_shortcut else ("conv", "1x1")
        return dict.fromkeys(parts, (self.conv.out_channels,))

    @torch.no_grad()
    def set_scales(self, scales: Scales, initialize: bool) -> None:
        """Let the convolution stand for a sum.

        Args:
            scales: Those of the parts, by name.
            initialize: Whether to make the initial weight the sum of initial parts ("rule of initialization").
        """
        self.scales = {name: scales[name].detach().to(self.conv.weight) for name in self.scale_shapes()}
        if initialize:
            pointwise = nn.Conv2d(self.conv.in_channels, self.conv.out_channels, 1, bias=False).weight
            self.conv.weight.copy_(merge_parts(self.conv.weight, pointwise.to(self.conv.weight), self.scales))

    def linear_additions(self) -> dict[str, LinearAddition]:
        """What parameters stand for, by name, where gradients are re-parameterized."""
        return (
            {"conv.weight": addition_of(self.scales, self.conv.in_channels)} if self.scales and not self.deploy else {}
        )

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        if self.deploy and f"{prefix}bn.running_var" in state_dict:
            self.fold(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def fold(self, state_dict: dict, prefix: str) -> None:
        """Convert what a state dict has of a training form to the deploy form; what is incomplete stays as it is."""
        own = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        kind = LinearAddBlock if "scale_conv.weight" in own else RepOptBlock
        with torch.device("meta"):
            twin = kind(self.conv.in_channels, self.conv.out_channels, self.conv.stride[0], norm_cfg=self.norm_cfg)
        own.setdefault("bn.num_batches_tracked", torch.tensor(0))
        if twin.state_dict().keys() != own.keys():
            return
        twin.load_state_dict(own, assign=True)
        twin.switch_to_deploy()
        for name in own:
            state_dict.pop(prefix + name, None)
        state_dict.update({prefix + name: value for name, value in twin.state_dict().items()})


class ChannelScale(nn.Module):
    """A trainable factor for each channel.

    Args:
        channels: Number of channels.
        init: Initial value.
    """

    def __init__(self, channels: int, init: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return x * self.weight.view(-1, 1, 1)


class LinearAddBlock(RepOptBlock):
    """The sum of a 3x3 convolution, a pointwise one and a shortcut, each times a trainable scale; a batch norm, a ReLU
    (RepOptimizer, ICLR 2023, section 3.3).

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        stride: Stride. Default: 1.
        scale_init: Initial scale of the convolutions; that of the shortcut is 1. Default: 1.
        norm_cfg: Config of the batch norm. Default: ``dict(type='BN', requires_grad=True)``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        scale_init: float = 1.0,
        norm_cfg: dict = dict(type="BN", requires_grad=True),
    ) -> None:
        super().__init__(in_channels, out_channels, stride, norm_cfg)
        self.scale_conv = ChannelScale(out_channels, scale_init)
        self.conv_1x1 = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        self.scale_1x1 = ChannelScale(out_channels, scale_init)
        if self.has_shortcut:
            self.scale_identity = ChannelScale(out_channels, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, ceil(H / stride), ceil(W / stride))."""
        if self.deploy:
            return super().forward(x)
        out = self.scale_conv(self.conv(x)) + self.scale_1x1(self.conv_1x1(x))
        if self.has_shortcut:
            out = out + self.scale_identity(x)
        return self.relu(self.bn(out))

    def get_equivalent_conv(self) -> Layer:
        """Kernel (O, I, 3, 3) and bias (O,) of all in front of the ReLU; differentiable."""
        if self.deploy:
            return self.conv.weight, self.conv.bias
        scales = {name: getattr(self, f"scale_{name}").weight.double() for name in self.scale_shapes()}
        merged = merge_parts(self.conv.weight.double(), self.conv_1x1.weight.double(), scales)
        return fold_after(merged, None, *scale_and_shift(self.bn))

    def switch_to_deploy(self) -> None:
        """Merge everything into the 3x3 convolution, in place."""
        if self.deploy:
            return
        super().switch_to_deploy()
        del self.conv_1x1
        for name in self.scale_shapes():
            delattr(self, f"scale_{name}")


def addition_of(scales: Scales, in_channels: int) -> LinearAddition:
    """The sum that a 3x3 convolution stands for."""
    addends: list[Addend] = [MiddleTap(scales["1x1"], in_channels)]
    if "identity" in scales:
        addends.append(IdentityTap(in_channels))
    return LinearAddition(scales["conv"].view(-1, 1, 1, 1), addends)


def merge_parts(weight: Tensor, pointwise: Tensor, scales: Scales) -> Tensor:
    """The sum of a kernel (O, I, 3, 3), another (O, I, 1, 1) and a shortcut, each times its scale; differentiable."""
    addition = addition_of(scales, weight.size(1))
    return addition.merge(weight, [pointwise[:, :, 0, 0], scales.get("identity")])

# SPDX-License-Identifier: Apache-2.0
"""The convolutions of the authors' other papers: ACNet, RepVGG and Diverse Branch Block."""

from dataclasses import replace

from torch import nn

from mmrepmlp.registry import MODELS

from ..common import ConvNorm
from .branches import Average, ChainBranch, CroppedConv2d, IdentityBasedConv, IdentityBranch
from .conv import ReparameterizableConv2d
from .geometry import Geometry


def conv_branch(in_channels: int, out_channels: int, geometry: Geometry, groups: int, norm_cfg: dict) -> ConvNorm:
    """Build a convolution and its batch norm."""
    return ConvNorm(CroppedConv2d(in_channels, out_channels, geometry, groups), norm_cfg)


@MODELS.register_module()
class ACBConv2d(ReparameterizableConv2d):
    """Asymmetric convolution block (ACNet, ICCV 2019).

    Its branches are the convolution, one of its middle column and one of its middle row. Arguments are those of
    :class:`ReparameterizableConv2d`.
    """

    def official_names(self) -> dict[str, str]:
        """Map the authors' names of modules to ours."""
        return {
            "square_conv": "branches.square.conv",
            "square_bn": "branches.square.bn",
            "ver_conv": "branches.vertical.conv",
            "ver_bn": "branches.vertical.bn",
            "hor_conv": "branches.horizontal.conv",
            "hor_bn": "branches.horizontal.bn",
            "fused_conv": "reparam",
        }

    def build_branches(self, geometry: Geometry, norm_cfg: dict) -> dict[str, nn.Module]:
        """Build the convolution and, if its kernel has several rows and columns, those of its middle column and row."""
        height, width = geometry.kernel_size
        sizes = {"square": (height, width)}
        if height > 1 and width > 1:
            sizes |= {"vertical": (height, 1), "horizontal": (1, width)}
        channels = (self.in_channels, self.out_channels)
        return {
            name: conv_branch(*channels, geometry.middle(*size), self.groups, norm_cfg) for name, size in sizes.items()
        }


@MODELS.register_module()
class RepVGGConv2d(ReparameterizableConv2d):
    """Convolution of RepVGG (CVPR 2021).

    Its branches are the convolution, a pointwise one and, with as many channels in as out and stride 1, a batch norm.
    Arguments are those of :class:`ReparameterizableConv2d`.
    """

    def official_names(self) -> dict[str, str]:
        """Map the authors' names of modules to ours."""
        return {
            "rbr_dense": "branches.dense",
            "rbr_1x1": "branches.pointwise",
            "rbr_identity": "branches.identity.bn",
            "rbr_reparam": "reparam",
        }

    def build_branches(self, geometry: Geometry, norm_cfg: dict) -> dict[str, nn.Module]:
        """Build the two convolutions and the batch norm."""
        channels, middle = (self.in_channels, self.out_channels), geometry.middle(1, 1)
        branches = {
            "dense": conv_branch(*channels, geometry, self.groups, norm_cfg),
            "pointwise": conv_branch(*channels, middle, self.groups, norm_cfg),
        }
        if self.in_channels == self.out_channels and self.stride == (1, 1):
            branches["identity"] = IdentityBranch(self.in_channels, middle, self.groups, norm_cfg)
        return branches


@MODELS.register_module()
class DBBConv2d(ReparameterizableConv2d):
    """Diverse branch block (CVPR 2021).

    Its branches are the convolution, a pointwise one, a pointwise one before another of the same kernel size, and a
    pointwise one before an average. A depthwise convolution has no pointwise branch and averages its input.

    Args:
        inner_channels: Number of channels between the pointwise convolution and the other one of its branch. Default:
            None, as many as the input has; twice as many in a depthwise convolution.
        **settings: Further arguments, those of :class:`ReparameterizableConv2d`.
    """

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved separately."""
        return self.groups == self.in_channels == self.out_channels

    def official_names(self) -> dict[str, str]:
        """Map the authors' names of modules to ours."""
        chain, average = "branches.pointwise_kxk", "branches.average"
        return {
            "dbb_origin": "branches.origin",
            "dbb_1x1": "branches.pointwise",
            "dbb_1x1_kxk.idconv1": f"{chain}.first.conv",
            "dbb_1x1_kxk.conv1": f"{chain}.first.conv",
            "dbb_1x1_kxk.bn1": f"{chain}.first.bn",
            "dbb_1x1_kxk.conv2": f"{chain}.second.conv",
            "dbb_1x1_kxk.bn2": f"{chain}.second.bn",
            "dbb_avg.conv": f"{average}.first.conv",
            "dbb_avg.bn": f"{average}.first.bn",
            "dbb_avg.avgbn": f"{average}.bn" if self.depthwise else f"{average}.second.bn",
            "dbb_reparam": "reparam",
        }

    def build_branches(
        self, geometry: Geometry, norm_cfg: dict, inner_channels: int | None = None
    ) -> dict[str, nn.Module]:
        """Build the branches; those with two convolutions pad between them."""
        groups, inner = self.groups, inner_channels or self.in_channels * (2 if self.depthwise else 1)
        if inner % groups:
            raise ValueError(f"inner_channels={inner} is not divisible by groups={groups}.")
        channels = (self.in_channels, self.out_channels)
        inside = replace(geometry, padding=(0, 0))  # the feature map is padded already
        window = Average(self.out_channels, geometry if self.depthwise else inside, groups)
        average = ConvNorm(window, norm_cfg)
        kxk = conv_branch(inner, self.out_channels, inside, groups, norm_cfg)
        if inner == self.in_channels:
            identity = IdentityBasedConv(inner, groups)
        else:
            identity = nn.Conv2d(self.in_channels, inner, 1, groups=groups, bias=False)
        branches = {
            "origin": conv_branch(*channels, geometry, groups, norm_cfg),
            "pointwise_kxk": ChainBranch(identity, inner, kxk, geometry, norm_cfg, groups),
        }
        if self.depthwise:
            return {**branches, "average": average}
        pointwise = nn.Conv2d(*channels, 1, groups=groups, bias=False)
        return {
            **branches,
            "pointwise": conv_branch(*channels, geometry.middle(1, 1), groups, norm_cfg),
            "average": ChainBranch(pointwise, self.out_channels, average, geometry, norm_cfg, groups),
        }

# SPDX-License-Identifier: Apache-2.0
"""RepMLPBlock and its perceptrons, in the order of the paper's section 3."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmrepmlp.checkpoint.tiles import note_tiles, noted_tiles, resample_noted
from mmrepmlp.reparam import (
    Affine,
    LinearAddition,
    Reparameterizable,
    TileTaps,
    affine,
    conv_to_fc,
    fuse_after,
    sum_kernels,
)

from ..backbone import check_kernels, check_positive
from ..common import ConvNorm, GroupedLinear, build_batch_norm, multiply_add, refuse_fx
from .local import SetConv2d
from .speed import multiply_tiles
from .tiling import PAD_MODES, join_tiles, split_tiles


class RepMLPBlock(Reparameterizable, BaseModule):
    """The block of RepMLPNet (paper section 3): global, channel and local perceptron over tiles of h by w pixels.

    It can be used in any network: it takes feature maps of any size, tile by tile, and keeps their shape.

    Args:
        channels: Number of input and output channels C.
        h: Height of a tile in pixels.
        w: Width of a tile in pixels.
        reparam_conv_kernels: Kernel sizes of the local branches in pixels, odd; None or empty for no local perceptron.
            Default: None.
        globalperceptron_ratio: Factor by which the bottleneck of the global perceptron reduces C. Default: 4.
        gp_channels: Width of that bottleneck, in place of the ratio. Default: None.
        num_sharesets: Number S of sets of channels, each of which shares a fully connected layer; divides C.
            Default: 1.
        pad_mode: How to complete the last tiles of a feature map that is not a whole number of tiles: ``"zeros"`` or
            ``"shift"`` (the last tile moves back inside the feature map; one smaller than a tile is mirrored).
            Default: "shift".
        fc3_norm_init: Initial weight of the batch norm after the fully connected layer. Below 1, training starts mostly
            from the convolutions, which know about neighbourhoods and do not depend on the position in the tile; this
            suits small datasets. Default: 1.
        norm_cfg: Config of the batch norms. Default: ``dict(type='BN', requires_grad=True)``.
        gradient_reparam: Whether to train in the structure of the deploy form: ``fc3`` holds the sum of the fully
            connected layer, times ``fc3_norm_init``, and the local branches, and one batch norm follows.
            ``mmrepmlp.RepOptimizerConstructor`` updates it as if these were trained separately. Default: False.
        deploy: Whether to build the deploy form. Default: False.
        init_cfg: Initialization config. Default: None.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        channels: int,
        h: int,
        w: int,
        reparam_conv_kernels: Sequence[int] | None = None,
        globalperceptron_ratio: int = 4,
        gp_channels: int | None = None,
        num_sharesets: int = 1,
        pad_mode: str = "shift",
        fc3_norm_init: float = 1.0,
        norm_cfg: dict = dict(type="BN", requires_grad=True),
        gradient_reparam: bool = False,
        deploy: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(deploy=deploy, init_cfg=init_cfg)
        self.reparam_conv_kernels = tuple(reparam_conv_kernels or ())
        self.channels, self.h, self.w, self.num_sharesets, self.pad_mode = channels, h, w, num_sharesets, pad_mode
        self._check_arguments(globalperceptron_ratio)
        self.gp = GlobalPerceptron(channels, channels // globalperceptron_ratio if gp_channels is None else gp_channels)
        self.fc3 = SetSharingLinear(num_sharesets, h * w, bias=deploy)
        self.fc3_bn = nn.Identity() if deploy else build_batch_norm(norm_cfg, num_sharesets)
        self.addition: LinearAddition | None = None
        self.has_network = False  # whether it is part of a RepMLPNet, which notes the tiles of all its blocks
        self.fc3_norm_init = 1.0
        if deploy:
            return
        if gradient_reparam:
            taps = [TileTaps(num_sharesets, kernel, h, w) for kernel in self.reparam_conv_kernels]
            self.addition = LinearAddition(torch.tensor(fc3_norm_init, dtype=torch.float64, device="cpu"), taps)
            self.restart(self.linear_additions())
            return
        self.fc3_norm_init = fc3_norm_init
        self.restart()
        for kernel in self.reparam_conv_kernels:
            self.add_module(f"repconv{kernel}", ConvNorm(SetConv2d(num_sharesets, kernel, h, w), norm_cfg))

    @torch.no_grad()
    def restart(self, initialized: Collection[str] = ()) -> None:
        """Initialize the batch norm after ``fc3``, or add initial weights of the local branches to ``fc3``."""
        if self.fc3_norm_init != 1 and getattr(self.fc3_bn, "affine", False):
            nn.init.constant_(self.fc3_bn.weight, self.fc3_norm_init)
        for addition in [self.linear_additions()[name] for name in initialized]:
            sizes = (self.num_sharesets, self.h, self.w)
            initial = [SetConv2d(sizes[0], kernel, *sizes[1:]).weight for kernel in self.reparam_conv_kernels]
            self.fc3.weight.copy_(addition.fuse(self.fc3.weight, initial))

    def _check_arguments(self, ratio: int) -> None:
        check_positive(channels=self.channels, h=self.h, w=self.w, num_sharesets=self.num_sharesets)
        if self.channels % self.num_sharesets:
            raise ValueError(
                f"channels={self.channels} is not divisible by num_sharesets={self.num_sharesets}: give a divisor of "
                "the channels."
            )
        if not isinstance(ratio, int) or not 1 <= ratio <= self.channels:
            raise ValueError(
                f"globalperceptron_ratio={ratio!r}: expected an int from 1 to the number of channels, {self.channels}."
            )
        if self.pad_mode not in PAD_MODES:
            raise ValueError(f"pad_mode={self.pad_mode!r}: expected one of {', '.join(PAD_MODES)}.")
        check_kernels(self.reparam_conv_kernels)

    @property
    def local_branches(self) -> list[ConvNorm]:
        """The convolutions parallel to the fully connected layer; none in deploy form."""
        return [module for module in self.children() if isinstance(module, ConvNorm)]

    def forward(
        self,
        x: Tensor,
        gate_input: Tensor | None = None,
        shortcut: Tensor | None = None,
        drop_path: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Gate the output of channel and local perceptron by the global perceptron (paper section 3).

        Args:
            x: Shape (N, C, H, W), with any H and W.
            gate_input: Input of the global perceptron, of the same shape, where the norm before the block is fused into
                it. Default: None, the same as ``x``.
            shortcut: Tensor to add to the result, of the same shape. Default: None.
            drop_path: Stochastic depth of the path beside the shortcut. It is applied to the gate (N, C, 1, 1), which
                drops the path. Default: None.

        Returns:
            Shape (N, C, H, W).
        """
        gate = self.gp(x if gate_input is None else gate_input)
        if drop_path is not None:
            gate = drop_path(gate)
        out = self.perceive_tiles(x)
        return out * gate if shortcut is None else multiply_add(out, gate, shortcut)

    def perceive_tiles(self, x: Tensor) -> Tensor:
        """Apply channel and local perceptron, without the gate: map (N, C, H, W) to (N, C, H, W)."""
        refuse_fx(self, x)
        tiles = split_tiles(x, self.num_sharesets, self.h, self.w, self.pad_mode)
        if self.fused:
            out = self.fc3(tiles)
        else:
            tiles = tiles.contiguous()
            out = self.fc3_bn(self.fc3(tiles).unsqueeze(0))
            for branch in self.local_branches:
                out = out + branch(tiles.unsqueeze(0))
            out = out.squeeze(0)
        return join_tiles(out, x.shape, self.h, self.w, self.pad_mode)

    def equivalents(self) -> dict[str, Affine]:
        """Fuse local branches and batch norms into the fully connected layer (Locality Injection, section 3.3)."""
        fc3 = affine(self.fc3)
        if self.fused:
            return {"fc3": fc3}
        pixels = self.h * self.w
        layers = [fuse_after(fc3, affine(self.fc3_bn).repeat(pixels))]
        if self.local_branches:
            kernel, bias = sum_kernels(map(affine, self.local_branches))
            matrices = conv_to_fc(kernel, self.h, self.w).view_as(fc3.weight)
            layers.append(Affine(matrices, bias.repeat_interleave(pixels)))
        return {"fc3": sum_kernels(layers)}

    def vanishing(self) -> Iterable[str]:
        """Return the names of the batch norm after ``fc3`` and of the local branches."""
        return ["fc3_bn", *(name for name, module in self.named_children() if isinstance(module, ConvNorm))]

    def linear_additions(self) -> dict[str, LinearAddition]:
        """Return the sums that parameters stand for, by name, where gradients are re-parameterized."""
        return {} if self.addition is None or self.fused else {"fc3.weight": self.addition}

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.has_network:
            note_tiles(destination, prefix, [(self.h, self.w)])

    def _load_from_state_dict(self, state_dict: dict, prefix: str, metadata: dict, *args) -> None:
        resample_noted(state_dict, f"{prefix}fc3.", noted_tiles(metadata), (self.h, self.w))
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)

    def insert_bn(self, norm_cfg: dict = dict(type="BN", requires_grad=True)) -> None:
        """Insert a batch norm after the fully connected layer of the deploy form, in place.

        It is the identity in eval mode, with a mean of 0 and a variance of 1;
        :meth:`~mmrepmlp.reparam.Reparameterizable.switch_to_deploy` fuses it.

        Args:
            norm_cfg: Config of the batch norm. Default: ``dict(type='BN', requires_grad=True)``.
        """
        if self.fused:
            norm = build_batch_norm(norm_cfg, self.num_sharesets).to(self.fc3.weight)
            nn.init.constant_(norm.weight, math.sqrt(1 + norm.eps))
            self.fc3_bn, self.fused = norm.train(self.training), False

    def local_inject(self) -> None:
        """Call :meth:`~mmrepmlp.reparam.Reparameterizable.switch_to_deploy`, by the authors' name."""
        self.switch_to_deploy()


class PixelConv(nn.Conv2d):
    """A pointwise convolution of feature maps of one pixel, (N, C, 1, 1), computed as a matrix product.

    For so little work, preparing a convolution takes several times as long.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, 1, 1) to (N, O, 1, 1)."""
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[..., None, None]


class GlobalPerceptron(nn.Module):
    """Gates of the channels from the average over the feature map, by squeeze (to ``hidden``) and excitation (paper
    section 3.1)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        pixel = dict(type=PixelConv)
        self.conv1 = ConvModule(channels, hidden, 1, conv_cfg=pixel, act_cfg=dict(type="ReLU"))
        self.conv2 = ConvModule(hidden, channels, 1, conv_cfg=pixel, act_cfg=dict(type="Sigmoid"))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to gates between 0 and 1 of shape (N, C, 1, 1)."""
        return self.conv2(self.conv1(x.mean((2, 3), keepdim=True)))


class SetSharingLinear(GroupedLinear):
    """The channel perceptron: fully connected over the pixels of a tile, once for each set of channels (paper section
    3.2).

    Args:
        num_sets: Number of sets S.
        pixels: Number of pixels P of a tile.
        bias: Whether to add a bias. Default: False.
    """

    def __init__(self, num_sets: int, pixels: int, bias: bool = False) -> None:
        super().__init__(num_sets, pixels, pixels, bias)

    def multiply(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Map (S, M, P) by matrices (S, P, P) to (S, M, P)."""
        return multiply_tiles(x, matrices)

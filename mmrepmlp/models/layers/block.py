# SPDX-License-Identifier: Apache-2.0
import math
from collections.abc import Callable, Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmrepmlp.reparam import (
    LinearAddition,
    Reparameterizable,
    TileTaps,
    conv_to_fc,
    fold_after,
    scale_and_shift,
    set_weight_and_bias,
)

from .arguments import check_kernels, check_positive
from .global_perceptron import GlobalPerceptron
from .local_branch import LocalBranch, SetConv2d, merge_branches, norm_sets
from .norm import build_batch_norm
from .set_sharing_linear import SetSharingLinear
from .tiling import PAD_MODES, join_tiles, split_tiles
from .tracing import multiply_add


class RepMLPBlock(BaseModule, Reparameterizable):
    """The block of RepMLPNet (paper section 3): global, channel and local perceptron over tiles of h by w pixels.

    A building block for any network: it takes maps of any size, tile by tile, and keeps their shape.

    Args:
        channels: Number of input and output channels C.
        h: Height of a tile in pixels.
        w: Width of a tile in pixels.
        reparam_conv_kernels: Sides of the local branches' kernels in pixels, odd; None or empty for no local
            perceptron. Default: None.
        globalperceptron_ratio: What C is divided by in the global perceptron's bottleneck. Default: 4.
        num_sharesets: Number of sets S that share a fully connected layer; divides C. Default: 1.
        pad_mode: What fills the last tiles of a map that is no whole number of tiles: ``"zeros"`` or ``"shift"``
            (the last tile moves back inside the map; a map smaller than a tile is mirrored). Default: "shift".
        fc3_norm_init: Initial weight of the batch norm behind the fully connected layer. Below 1, training starts out
            from the convolutions, which know of neighbourhood and do not depend on the place in the tile: for small
            data sets. Default: 1.
        norm_cfg: Config of the batch norms. Default: ``dict(type='BN', requires_grad=True)``.
        gradient_reparam: Whether to train in the structure of the deploy form: ``fc3`` alone holds the sum of what
            would be the fully connected layer, times ``fc3_norm_init``, and the local branches, with one batch norm
            behind it. ``mmrepmlp.RepOptimizerConstructor`` moves it as if they were there. Default: False.
        deploy: Whether to build the deploy form. Default: False.
        init_cfg: Initialization config. Default: None.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        channels: int,
        h: int,
        w: int,
        reparam_conv_kernels: Sequence[int] | None = None,
        globalperceptron_ratio: int = 4,
        num_sharesets: int = 1,
        pad_mode: str = "shift",
        fc3_norm_init: float = 1.0,
        norm_cfg: dict = dict(type="BN", requires_grad=True),
        gradient_reparam: bool = False,
        deploy: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.reparam_conv_kernels = tuple(reparam_conv_kernels or ())
        self.channels, self.h, self.w, self.num_sharesets, self.pad_mode = channels, h, w, num_sharesets, pad_mode
        self._check_arguments(globalperceptron_ratio)
        self.gp = GlobalPerceptron(channels, globalperceptron_ratio)
        self.fc3 = SetSharingLinear(num_sharesets, h * w, bias=deploy)
        self.fc3_bn = nn.Identity() if deploy else build_batch_norm(norm_cfg, num_sharesets)
        self.addition: LinearAddition | None = None
        if deploy:
            return
        if gradient_reparam:
            self.build_addition(fc3_norm_init)
            return
        if self.fc3_bn.affine:
            nn.init.constant_(self.fc3_bn.weight, fc3_norm_init)
        for kernel in self.reparam_conv_kernels:
            self.add_module(f"repconv{kernel}", LocalBranch(num_sharesets, kernel, norm_cfg))

    def build_addition(self, scale: float) -> None:
        """Let ``fc3`` stand for the sum of itself, times a constant, and the local branches."""
        sets, kernels = self.num_sharesets, self.reparam_conv_kernels
        taps = [TileTaps(sets, kernel, self.h, self.w) for kernel in kernels]
        self.addition = LinearAddition(torch.tensor(scale, dtype=torch.float64, device="cpu"), taps)
        with torch.no_grad():
            merged = self.addition.merge(self.fc3.weight, [SetConv2d(sets, kernel).weight for kernel in kernels])
            self.fc3.weight.copy_(merged)

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
    def deploy(self) -> bool:
        return isinstance(self.fc3_bn, nn.Identity)

    @property
    def local_branches(self) -> list[LocalBranch]:
        """The convolutions beside the fully connected layer; none in deploy form."""
        return [module for module in self.children() if isinstance(module, LocalBranch)]

    def forward(
        self,
        x: Tensor,
        gate_input: Tensor | None = None,
        shortcut: Tensor | None = None,
        drop_path: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Gate what the channel and local perceptron see by the global perceptron (paper section 3).

        Args:
            x: Shape (N, C, H, W), with any H and W.
            gate_input: What the global perceptron sees, of the same shape, where it has absorbed a norm in front of
                the block. Default: ``x``.
            shortcut: What to add to the result, of the same shape. Default: nothing.
            drop_path: Stochastic depth of the path beside the shortcut. It is applied to the gate (N, C, 1, 1), which
                drops the path. Default: none.

        Returns:
            Shape (N, C, H, W).
        """
        gate = self.gp(x if gate_input is None else gate_input)
        if drop_path is not None:
            gate = drop_path(gate)
        out = self.perceive_tiles(x)
        return out * gate if shortcut is None else multiply_add(out, gate, shortcut)

    def perceive_tiles(self, x: Tensor) -> Tensor:
        """Channel and local perceptron, before the gate: map (N, C, H, W) to (N, C, H, W)."""
        tiles = split_tiles(x, self.num_sharesets, self.h, self.w, self.pad_mode)
        if self.deploy:
            out = self.fc3(tiles)
        else:
            tiles = tiles.contiguous()
            out = norm_sets(self.fc3_bn, self.fc3(tiles))
            for branch in self.local_branches:
                out = out + branch(tiles, self.h, self.w)
        return join_tiles(out, x.shape, self.h, self.w, self.pad_mode)

    def get_equivalent_fc3(self) -> tuple[Tensor, Tensor]:
        """Merge the local branches and all batch norms into the fully connected layer (paper section 3.3).

        Differentiable with respect to every parameter involved.

        Returns:
            The weight, shape (S * P, P, 1, 1), and the bias, shape (S * P,), of the one equivalent layer; P = h * w.
            float64 in training form; the layer's own parameters in deploy form.
        """
        if self.deploy:
            return self.fc3.weight, self.fc3.bias
        pixels = self.h * self.w
        norm = (tensor.repeat_interleave(pixels) for tensor in scale_and_shift(self.fc3_bn))
        weight, bias = fold_after(self.fc3.weight, self.fc3.bias, *norm)
        if self.local_branches:
            kernel, kernel_bias = merge_branches(self.local_branches)
            weight = weight + conv_to_fc(kernel, self.h, self.w).view_as(weight)
            bias = bias + kernel_bias.repeat_interleave(pixels)
        return weight, bias

    def linear_additions(self) -> dict[str, LinearAddition]:
        """What parameters stand for, by name, where gradients are re-parameterized."""
        return {} if self.addition is None or self.deploy else {"fc3.weight": self.addition}

    def insert_bn(self, norm_cfg: dict = dict(type="BN", requires_grad=True)) -> None:
        """Put a batch norm behind the fully connected layer of the deploy form, in place.

        It is the identity in eval mode, with a mean of 0 and a variance of 1; :meth:`switch_to_deploy` folds it.

        Args:
            norm_cfg: Config of the batch norm. Default: ``dict(type='BN', requires_grad=True)``.
        """
        if self.deploy:
            norm = build_batch_norm(norm_cfg, self.num_sharesets).to(self.fc3.weight)
            nn.init.constant_(norm.weight, math.sqrt(1 + norm.eps))
            self.fc3_bn = norm.train(self.training)

    def switch_to_deploy(self) -> None:
        """Locality Injection: leave one fully connected layer with a bias, in place (paper section 3.3)."""
        if self.deploy:
            return
        norms = [self.fc3_bn, *(branch.bn for branch in self.local_branches)]
        set_weight_and_bias(self.fc3, *self.get_equivalent_fc3(), norms)
        self.fc3_bn = nn.Identity().train(self.training)
        for name in [name for name, module in self.named_children() if isinstance(module, LocalBranch)]:
            delattr(self, name)

    def local_inject(self) -> None:
        """The authors' name for :meth:`switch_to_deploy`."""
        self.switch_to_deploy()

# SPDX-License-Identifier: Apache-2.0
import math
from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmrepmlp.reparam import Reparameterizable, conv_to_fc, fold_after, scale_and_shift, set_weight_and_bias

from .global_perceptron import GlobalPerceptron
from .norm import build_batch_norm
from .set_sharing_linear import SetSharingLinear
from .tiling import PAD_MODES, join_tiles, split_tiles
from .tracing import is_symbolic


class LocalBranch(nn.Module):
    """A depth-wise convolution and its batch norm on tiles, one kernel for each set (paper section 3.3).

    Args:
        num_sets: Number of sets S.
        kernel_size: Side of the kernel in pixels, odd.
        norm_cfg: Config of the batch norm.
    """

    def __init__(self, num_sets: int, kernel_size: int, norm_cfg: dict) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_sets, num_sets, kernel_size, padding=kernel_size // 2, groups=num_sets, bias=False)
        self.bn = build_batch_norm(norm_cfg, num_sets)

    def forward(self, tiles: Tensor, h: int, w: int) -> Tensor:
        """Map (S, M, h * w) to (S, M, h * w)."""
        sets, rows, pixels = tiles.shape
        if is_symbolic(rows):  # the number of groups cannot be left open
            return self.bn(self.conv(tiles.transpose(0, 1).reshape(rows, sets, h, w))).flatten(2).transpose(0, 1)
        # All rows side by side as channels: a convolution over S channels alone, one or four in the early stages,
        # runs up to 40 times slower.
        kernels = self.conv.weight.repeat_interleave(rows, 0)
        out = F.conv2d(tiles.reshape(1, sets * rows, h, w), kernels, padding=self.conv.padding, groups=sets * rows)
        return norm_sets(self.bn, out.view(sets, rows, pixels))

    def scaled_kernel(self) -> tuple[Tensor, Tensor]:
        """The kernel (S, 1, k, k) and bias (S,) of branch and norm as one, float64."""
        return fold_after(self.conv.weight, None, *scale_and_shift(self.bn))


def norm_sets(bn: nn.Module, tiles: Tensor) -> Tensor:
    """Apply a batch norm over S channels to tiles (S, M, P)."""
    return bn(tiles.unsqueeze(0)).squeeze(0)


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
        if not deploy:
            if self.fc3_bn.affine:
                nn.init.constant_(self.fc3_bn.weight, fc3_norm_init)
            for kernel in self.reparam_conv_kernels:
                self.add_module(f"repconv{kernel}", LocalBranch(num_sharesets, kernel, norm_cfg))

    def _check_arguments(self, ratio: int) -> None:
        for name, value in dict(channels=self.channels, h=self.h, w=self.w, num_sharesets=self.num_sharesets).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: a positive int is accepted.")
        if self.channels % self.num_sharesets:
            raise ValueError(
                f"channels={self.channels} cannot be dealt to num_sharesets={self.num_sharesets} sets: give a divisor "
                "of the channels."
            )
        if not isinstance(ratio, int) or not 1 <= ratio <= self.channels:
            raise ValueError(
                f"globalperceptron_ratio={ratio!r}: an int from 1 to the number of channels ({self.channels}) is "
                "accepted."
            )
        if self.pad_mode not in PAD_MODES:
            raise ValueError(f"pad_mode={self.pad_mode!r}: one of {', '.join(PAD_MODES)} is accepted.")
        kernels = self.reparam_conv_kernels
        if any(not isinstance(k, int) or k < 1 or k % 2 == 0 for k in kernels) or len(set(kernels)) < len(kernels):
            raise ValueError(f"reparam_conv_kernels={kernels}: distinct, odd, positive ints are accepted, e.g. (1, 3).")

    @property
    def deploy(self) -> bool:
        return isinstance(self.fc3_bn, nn.Identity)

    @property
    def local_branches(self) -> list[LocalBranch]:
        """The convolutions beside the fully connected layer; none in deploy form."""
        return [module for module in self.children() if isinstance(module, LocalBranch)]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W), with any H and W."""
        return self.perceive_tiles(x) * self.gp(x)

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
        set_weight_and_bias(self.fc3, *self.get_equivalent_fc3())
        self.fc3_bn = nn.Identity().train(self.training)
        for name in [name for name, module in self.named_children() if isinstance(module, LocalBranch)]:
            delattr(self, name)


def merge_branches(branches: list[LocalBranch]) -> tuple[Tensor, Tensor]:
    """Add up parallel branches into the kernel (S, 1, k, k) and bias (S,) of their largest, float64."""
    kernels, biases = zip(*(branch.scaled_kernel() for branch in branches))
    largest = max(kernel.size(-1) for kernel in kernels)
    padded = [F.pad(kernel, [(largest - kernel.size(-1)) // 2] * 4) for kernel in kernels]
    return sum(padded), sum(biases)

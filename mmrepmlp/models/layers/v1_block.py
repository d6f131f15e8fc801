# SPDX-License-Identifier: Apache-2.0
from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from mmrepmlp.reparam import (
    Reparameterizable,
    conv_to_fc,
    fold_after,
    fold_before,
    scale_and_shift,
    set_weight_and_bias,
)

from .arguments import check_kernels, check_positive
from .conv import PaddedConvBN
from .grouped_linear import GroupedLinear
from .local_branch import merge_branches
from .norm import build_batch_norm
from .tracing import is_symbolic
from .v1_global_perceptron import PartitionAverage, PartitionMLP


class RepMLPv1Block(BaseModule, Reparameterizable):
    """The first RepMLP block (arXiv 2105.01883, section 3): a layer in place of a convolution of any network.

    A map is cut into partitions of h by w pixels. The global perceptron adds to each partition what two fully connected
    layers make of the averages of all of them; then the partition perceptron, fully connected over pixels and channels
    of a group, and the local perceptron, convolutions of the same groups, map each partition, and their results are
    added up. Unlike :class:`RepMLPBlock` it mixes channels, may change their number, and its map has one size, since
    the global perceptron has weights for each partition. A map that is one partition as built has no global perceptron;
    then maps of any whole number of partitions pass.

    Args:
        in_channels: Number of input channels C.
        out_channels: Number of output channels O.
        map_size: Height and width of the map in pixels.
        h: Height of a partition in pixels; divides that of the map.
        w: Width of a partition in pixels; divides that of the map.
        reparam_conv_kernels: Sides of the local perceptron's kernels in pixels, odd; None or empty for no local
            perceptron. Default: (1, 3, 5).
        globalperceptron_reduction: What the width between the two layers of the global perceptron is divided by.
            Default: 1.
        groups: Number of groups g of the partition and the local perceptron; divides C and O. Default: 1.
        norm_cfg: Config of the batch norms. Default: ``dict(type='BN', requires_grad=True)``.
        deploy: Whether to build the deploy form. Default: False.
        init_cfg: Initialization config. Default: None.

    Raises:
        ValueError: An argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        map_size: int | tuple[int, int],
        h: int,
        w: int,
        reparam_conv_kernels: Sequence[int] | None = (1, 3, 5),
        globalperceptron_reduction: int = 1,
        groups: int = 1,
        norm_cfg: dict = dict(type="BN", requires_grad=True),
        deploy: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.map_size, self.h, self.w = tuple(_pair(map_size)), h, w
        self.reparam_conv_kernels = tuple(reparam_conv_kernels or ())
        self._check_arguments(globalperceptron_reduction)
        self.has_global_perceptron = self.map_size != (h, w)
        if self.has_global_perceptron:
            features = in_channels * self.map_size[0] * self.map_size[1] // (h * w)
            self._check_reduction(globalperceptron_reduction, features)
            self.fc1_fc2 = PartitionMLP(features, globalperceptron_reduction)
            self.avg = PartitionAverage(in_channels, h, w, norm_cfg, deploy)
        self.fc3 = GroupedLinear(groups, in_channels // groups * h * w, out_channels // groups * h * w, bias=deploy)
        self.fc3_bn = nn.Identity() if deploy else build_batch_norm(norm_cfg, out_channels * h * w)
        if not deploy:
            nn.init.orthogonal_(self.fc3.weight)
            for kernel in self.reparam_conv_kernels:
                conv = PaddedConvBN(in_channels, out_channels, kernel, groups=groups, norm_cfg=norm_cfg, relu=False)
                self.add_module(f"repconv{kernel}", conv)

    def _check_arguments(self, reduction: int) -> None:
        numbers = dict(in_channels=self.in_channels, out_channels=self.out_channels, h=self.h, w=self.w)
        check_positive(**numbers, groups=self.groups, globalperceptron_reduction=reduction)
        for name in ("in_channels", "out_channels"):
            if numbers[name] % self.groups:
                raise ValueError(
                    f"groups={self.groups} does not divide RepMLP's {name}={numbers[name]}: give a divisor of both of "
                    "its numbers of channels."
                )
        size = self.map_size
        if len(size) != 2 or any(not isinstance(side, int) or side < 1 for side in size):
            raise ValueError(f"map_size={size}: expected a positive int or a pair (height, width) of positive ints.")
        if size[0] % self.h or size[1] % self.w:
            raise ValueError(
                f"map_size={size} is not divisible into partitions of h={self.h} by w={self.w} pixels: give "
                "divisors of height and width of the map."
            )
        check_kernels(self.reparam_conv_kernels)

    def _check_reduction(self, reduction: int, features: int) -> None:
        if reduction > features:
            raise ValueError(
                f"globalperceptron_reduction={reduction}: expected at most {features}, the number of channels times "
                "partitions."
            )

    @property
    def deploy(self) -> bool:
        return isinstance(self.fc3_bn, nn.Identity)

    @property
    def local_branches(self) -> list[PaddedConvBN]:
        """The convolutions beside the fully connected layer; none in deploy form."""
        return [module for module in self.children() if isinstance(module, PaddedConvBN)]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, H, W).

        Raises:
            ValueError: The map has another size than the block was built for; without a global perceptron: it is no
                whole number of partitions.
        """
        self._check_size(x)
        (n, c, height, width), h, w = x.shape, self.h, self.w
        rows, columns = height // h, width // w
        cells = x.reshape(n, c, rows, h, columns, w)
        if self.has_global_perceptron:
            cells = cells + self.fc1_fc2(self.avg(x)).view(n, c, rows, 1, columns, 1)
        partitions = cells.permute(0, 2, 4, 1, 3, 5).reshape(n * rows * columns, c, h, w)
        out = self.perceive_partitions(partitions).view(n, rows, columns, self.out_channels, h, w)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(n, self.out_channels, height, width)

    def perceive_partitions(self, partitions: Tensor) -> Tensor:
        """Partition and local perceptron: map (M, C, h, w) to (M, O, h, w)."""
        out = self.fc3(partitions.flatten(1).unflatten(1, (self.groups, -1)).transpose(0, 1))
        out = self.fc3_bn(out.transpose(0, 1).flatten(1)[..., None, None]).view(-1, self.out_channels, self.h, self.w)
        for branch in self.local_branches:
            out = out + branch(partitions)
        return out

    def _check_size(self, x: Tensor) -> None:
        size = tuple(x.shape[2:])
        if any(map(is_symbolic, size)) or torch.jit.is_tracing():
            return
        if self.has_global_perceptron:
            if size != self.map_size:
                raise ValueError(
                    f"The map has {size[0]}x{size[1]} pixels, but RepMLPv1Block was built for "
                    f"{self.map_size[0]}x{self.map_size[1]}, since the fully connected layers of its global perceptron "
                    "have weights for each partition: give images of the backbone's img_size, or build it with another."
                )
        elif size[0] % self.h or size[1] % self.w:
            raise ValueError(
                f"The map has {size[0]}x{size[1]} pixels, which is no whole number of partitions of {self.h}x{self.w}: "
                "give images of the backbone's img_size, or of a multiple."
            )

    def get_equivalent_fc3(self) -> tuple[Tensor, Tensor]:
        """Merge the local branches and all batch norms into the fully connected layer (paper section 3.3).

        Differentiable with respect to every parameter involved.

        Returns:
            The weight, shape (O * h * w, C / g * h * w, 1, 1), and the bias, shape (O * h * w,), of the one equivalent
            layer. float64 in training form; the layer's own parameters in deploy form.
        """
        if self.deploy:
            return self.fc3.weight, self.fc3.bias
        weight, bias = fold_after(self.fc3.weight, self.fc3.bias, *scale_and_shift(self.fc3_bn))
        if self.local_branches:
            kernel, kernel_bias = merge_branches(self.local_branches)
            weight = weight + conv_to_fc(kernel, self.h, self.w, self.groups).reshape_as(weight)
            bias = bias + kernel_bias.repeat_interleave(self.h * self.w)
        return weight, bias

    def get_equivalent_fc1(self) -> tuple[Tensor, Tensor]:
        """Merge the batch norm behind the averages into the first layer of the global perceptron; differentiable.

        Returns:
            The weight (F / reduction, F) and the bias of the one equivalent layer, with F channels times partitions.
            float64 in training form; the layer's own parameters in deploy form.
        """
        fc1 = self.fc1_fc2.fc1
        if isinstance(self.avg.bn, nn.Identity):
            return fc1.weight, fc1.bias
        partitions = fc1.in_features // self.in_channels
        scale, shift = (tensor.repeat_interleave(partitions) for tensor in scale_and_shift(self.avg.bn))
        return fold_before(fc1.weight, fc1.bias, scale, shift)

    def switch_to_deploy(self) -> None:
        """Leave three fully connected layers with biases, in place (paper section 3.3)."""
        if self.deploy:
            return
        norms = [self.fc3_bn, *(branch.bn for branch in self.local_branches)]
        set_weight_and_bias(self.fc3, *self.get_equivalent_fc3(), norms)
        self.fc3_bn = nn.Identity().train(self.training)
        for name in [name for name, module in self.named_children() if isinstance(module, PaddedConvBN)]:
            delattr(self, name)
        if self.has_global_perceptron:
            set_weight_and_bias(self.fc1_fc2.fc1, *self.get_equivalent_fc1(), [self.avg.bn])
            self.avg.bn = nn.Identity().train(self.training)

# SPDX-License-Identifier: Apache-2.0
"""The first RepMLP block, and the residual blocks around it, with the authors' names (arXiv 2105.01883)."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmrepmlp.checkpoint.tiles import note_tiles, noted_tiles
from mmrepmlp.reparam import Affine, Reparameterizable, affine, conv_to_fc, fuse_after, fuse_before, sum_kernels

from ..backbone import check_kernels, check_positive, to_pair
from ..common import ConvNorm, GroupedLinear, build_batch_norm, is_symbolic, recompute, refuse_fx


class RepMLPv1Block(Reparameterizable, BaseModule):
    """The first RepMLP block (arXiv 2105.01883, section 3), a layer in place of a convolution of any network.

    A feature map is cut into partitions of h by w pixels. The global perceptron passes the averages of all partitions
    through two fully connected layers, and adds the result to the partitions. Then the partition perceptron, fully
    connected over pixels and channels of a group, and the local perceptron, convolutions with the same groups, map each
    partition, and their results are added up.

    Unlike :class:`RepMLPBlock`, it mixes channels and may change their number. It takes feature maps of one size only,
    since the global perceptron has weights for each partition. If ``map_size`` is one partition, there is no global
    perceptron, and the block takes feature maps of any whole number of partitions.

    Args:
        in_channels: Number of input channels C.
        out_channels: Number of output channels O.
        map_size: Height and width of the feature map in pixels.
        h: Height of a partition in pixels; divides that of the feature map.
        w: Width of a partition in pixels; divides that of the feature map.
        reparam_conv_kernels: Kernel sizes of the local perceptron in pixels, odd; None or empty for no local
            perceptron. Default: (1, 3, 5).
        globalperceptron_reduction: Factor by which the global perceptron reduces the width between its two layers.
            Default: 1.
        groups: Number of groups g of the partition and the local perceptron; divides C and O. Default: 1.
        norm_cfg: Config of the batch norms. Default: ``dict(type='BN', requires_grad=True)``.
        deploy: Whether to build the deploy form. Default: False.
        init_cfg: Initialization config. Default: None.

    Raises:
        ValueError: An argument is out of range.
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
        super().__init__(deploy=deploy, init_cfg=init_cfg)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.map_size, self.h, self.w = to_pair("map_size", map_size), h, w
        self.reparam_conv_kernels = tuple(reparam_conv_kernels or ())
        self._check_arguments(globalperceptron_reduction)
        self.has_global_perceptron = self.map_size != (h, w)
        if self.has_global_perceptron:
            features = in_channels * self.map_size[0] * self.map_size[1] // (h * w)
            hidden = features // globalperceptron_reduction
            if not hidden:
                raise ValueError(
                    f"globalperceptron_reduction={globalperceptron_reduction}: expected at most {features}, the number "
                    "of channels times partitions."
                )
            layers = dict(fc1=nn.Linear(features, hidden), relu=nn.ReLU(inplace=True), fc2=nn.Linear(hidden, features))
            self.fc1_fc2 = nn.Sequential(OrderedDict(layers))
            norm = nn.Identity() if deploy else build_batch_norm(norm_cfg, in_channels)
            self.avg = nn.Sequential(OrderedDict(pool=nn.AvgPool2d((h, w)), bn=norm))
        self.fc3 = GroupedLinear(groups, in_channels // groups * h * w, out_channels // groups * h * w, bias=deploy)
        self.fc3_bn = nn.Identity() if deploy else build_batch_norm(norm_cfg, out_channels * h * w)
        if not deploy:
            nn.init.orthogonal_(self.fc3.weight)
            for kernel in self.reparam_conv_kernels:
                conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False)
                self.add_module(f"repconv{kernel}", ConvNorm(conv, norm_cfg))

    def _check_arguments(self, reduction: int) -> None:
        numbers = dict(in_channels=self.in_channels, out_channels=self.out_channels, h=self.h, w=self.w)
        check_positive(**numbers, groups=self.groups, globalperceptron_reduction=reduction)
        for name in ("in_channels", "out_channels"):
            if numbers[name] % self.groups:
                raise ValueError(
                    f"groups={self.groups} does not divide RepMLP's {name}={numbers[name]}: set groups to a divisor of "
                    "in_channels and out_channels."
                )
        if self.map_size[0] % self.h or self.map_size[1] % self.w:
            raise ValueError(
                f"map_size={self.map_size} is not divisible into partitions of h={self.h} by w={self.w} pixels: set h "
                "and w to divisors of its height and width, or change the img_size of the backbone."
            )
        check_kernels(self.reparam_conv_kernels)

    @property
    def local_branches(self) -> list[ConvNorm]:
        """The convolutions parallel to the fully connected layer; none in deploy form."""
        return [module for module in self.children() if isinstance(module, ConvNorm)]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, H, W).

        Raises:
            ValueError: The feature map has another size than the block was built for or, without a global perceptron,
                is not a whole number of partitions.
        """
        refuse_fx(self, x)
        self._check_size(x)
        (n, c, height, width), h, w = x.shape, self.h, self.w
        rows, columns = height // h, width // w
        cells = x.reshape(n, c, rows, h, columns, w)
        if self.has_global_perceptron:
            cells = cells + self.fc1_fc2(self.avg(x).flatten(1)).view(n, c, rows, 1, columns, 1)
        partitions = cells.permute(0, 2, 4, 1, 3, 5).reshape(n * rows * columns, c, h, w)
        out = self.perceive_partitions(partitions).view(n, rows, columns, self.out_channels, h, w)
        return out.permute(0, 3, 1, 4, 2, 5).reshape(n, self.out_channels, height, width)

    def perceive_partitions(self, partitions: Tensor) -> Tensor:
        """Apply partition and local perceptron: map (M, C, h, w) to (M, O, h, w)."""
        out = self.fc3(partitions.flatten(1).unflatten(1, (self.groups, -1)).transpose(0, 1))
        out = self.fc3_bn(out.transpose(0, 1).flatten(1)[..., None, None]).view(-1, self.out_channels, self.h, self.w)
        for branch in self.local_branches:
            out = out + branch(partitions)
        return out

    def _check_size(self, x: Tensor) -> None:
        size = tuple(x.shape[2:])
        if any(map(is_symbolic, size)) or torch.jit.is_tracing():
            return
        if self.has_global_perceptron and size != self.map_size:
            raise ValueError(
                f"The feature map has {size[0]}x{size[1]} pixels, but RepMLPv1Block was built for "
                f"{self.map_size[0]}x{self.map_size[1]}: the fully connected layers of its global perceptron have "
                "weights for each partition. Use images of the backbone's img_size, or build it with another."
            )
        if size[0] % self.h or size[1] % self.w:
            raise ValueError(
                f"The feature map has {size[0]}x{size[1]} pixels, which is not a whole number of partitions of "
                f"{self.h}x{self.w}. Use images of the backbone's img_size, or of a multiple."
            )

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        note_tiles(destination, prefix, [(self.h, self.w)])

    def _load_from_state_dict(self, state_dict: dict, prefix: str, metadata: dict, *args) -> None:
        noted = noted_tiles(metadata) or [(self.h, self.w)]
        if noted != [(self.h, self.w)]:
            raise ValueError(
                f"{prefix}fc3 is for partitions of h={noted[0][0]} by w={noted[0][1]} pixels, the model has h={self.h} "
                f"and w={self.w}. Build the model with those of the state dict."
            )
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)

    def equivalents(self) -> dict[str, Affine]:
        """Fuse local branches and batch norms into the fully connected layers (paper section 3.3)."""
        layers = {"fc3": affine(self.fc3)}
        if self.has_global_perceptron:
            layers["fc1_fc2.fc1"] = affine(self.fc1_fc2.fc1)
        if self.fused:
            return layers
        fc3 = fuse_after(layers["fc3"], affine(self.fc3_bn))
        if self.local_branches:
            kernel, bias = sum_kernels(map(affine, self.local_branches))
            matrices = conv_to_fc(kernel, self.h, self.w, self.groups).reshape_as(fc3.weight)
            fc3 = sum_kernels([fc3, Affine(matrices, bias.repeat_interleave(self.h * self.w))])
        layers["fc3"] = fc3
        if self.has_global_perceptron:
            partitions = self.fc1_fc2.fc1.in_features // self.in_channels
            layers["fc1_fc2.fc1"] = fuse_before(affine(self.avg.bn).repeat(partitions), layers["fc1_fc2.fc1"])
        return layers

    def vanishing(self) -> Iterable[str]:
        """Return the names of the batch norms and of the local branches."""
        branches = (name for name, module in self.named_children() if isinstance(module, ConvNorm))
        return ["fc3_bn", *(["avg.bn"] if self.has_global_perceptron else []), *branches]


class ResidualBlock(BaseModule):
    """Residual block: a sequence of layers beside a shortcut, and a ReLU after the sum (section 3.4 and appendix A).

    Args:
        shortcut: The module beside the layers.
        layers: The layers by name, in order; None under ``"relu"`` runs the ReLU of the block.
        with_cp: Whether to recompute activations in the backward pass to save memory. Default: False.
    """

    def __init__(self, shortcut: nn.Module, layers: Mapping[str, nn.Module | None], with_cp: bool = False) -> None:
        super().__init__()
        self.with_cp, self.path = with_cp, tuple(layers)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = shortcut
        for name, layer in layers.items():
            if layer is not None:
                self.add_module(name, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) to (N, O, ceil(H / stride), ceil(W / stride))."""
        return recompute(self, self.compute, x)

    def compute(self, x: Tensor) -> Tensor:
        """Run the forward pass, twice where activations are recomputed."""
        out = x
        for name in self.path:
            out = getattr(self, name)(out)
        return self.relu(out + self.shortcut(x))


def padded_conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    dilation: int = 1,
    relu: bool = True,
    *,
    norm_cfg: dict,
    deploy: bool,
) -> ConvNorm:
    """Build a convolution, zero-padded so that stride 1 keeps the size of a feature map, with a norm and a ReLU."""
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=deploy)
    return ConvNorm(conv, norm_cfg, relu, deploy=deploy)


def plain_bottleneck(
    in_channels: int, out_channels: int, stride: int, dilation: int, *, with_cp: bool, **settings: object
) -> ResidualBlock:
    """Build the block of ResNet-50, with stride and dilation on the 3x3 convolution; ``settings`` of all blocks here
    are ``norm_cfg`` and ``deploy``."""
    inside, shortcut = out_channels // 4, nn.Identity()
    if stride != 1 or in_channels != out_channels:
        shortcut = padded_conv(in_channels, out_channels, 1, stride, relu=False, **settings)
    layers = dict(
        conv1=padded_conv(in_channels, inside, 1, **settings),
        conv2=padded_conv(inside, inside, 3, stride, dilation, **settings),
        conv3=padded_conv(inside, out_channels, 1, relu=False, **settings),
    )
    return ResidualBlock(shortcut, layers, with_cp)


def repmlp_light_block(channels: int, repmlp: dict, *, with_cp: bool, **settings: object) -> ResidualBlock:
    """Build RepMLP between two 1x1 convolutions, on an eighth of the channels (appendix A); ``repmlp`` holds further
    arguments of :class:`RepMLPv1Block`."""
    inside = channels // 8
    layers = dict(
        light_conv1=padded_conv(channels, inside, 1, **settings),
        light_repmlp=RepMLPv1Block(inside, inside, **repmlp, **settings),
        relu=None,
        light_conv3=padded_conv(inside, channels, 1, relu=False, **settings),
    )
    return ResidualBlock(nn.Identity(), layers, with_cp)


def repmlp_bottleneck(
    channels: int, reduction: int, repmlp: dict, *, with_cp: bool, **settings: object
) -> ResidualBlock:
    """Build RepMLP between two 3x3 convolutions, which divide the channels by ``reduction``, and these between two 1x1
    convolutions, which divide them by 4 (section 3.4); ``repmlp`` holds further arguments of :class:`RepMLPv1Block`."""
    outer, inner = channels // 4, channels // 4 // reduction
    if not inner:
        raise ValueError(f"reduction={reduction}: expected at most {outer}, the number of channels to divide.")
    layers = dict(
        btnk_conv1=padded_conv(channels, outer, 1, **settings),
        btnk_conv2=padded_conv(outer, inner, 3, **settings),
        btnk_repmlp=RepMLPv1Block(inner, inner, **repmlp, **settings),
        relu=None,
        btnk_conv4=padded_conv(inner, outer, 3, **settings),
        btnk_conv5=padded_conv(outer, channels, 1, relu=False, **settings),
    )
    return ResidualBlock(nn.Identity(), layers, with_cp)

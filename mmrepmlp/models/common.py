# SPDX-License-Identifier: Apache-2.0
"""Layers that several networks share, and helpers for compilers and exporters."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.reparam import Affine, Reparameterizable, affine, fuse_after


def is_tracing() -> bool:
    """Whether a compiler, an exporter or a tracer is tracing the computation.

    Shortcuts that make eager mode fast on one machine do not belong in a graph that another machine optimizes.
    """
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_plain() -> bool:
    """Whether to compute by the plain formula: for compilers, exporters and tracers, or in eager mode because the
    environment variable ``MMREPMLP_PLAIN`` is 1."""
    return is_tracing() or os.environ.get("MMREPMLP_PLAIN") == "1"


def refuse_fx(module: nn.Module, x: Tensor | Proxy) -> None:
    """Raise an error if torch.fx traces a module: it cannot follow the sizes and branches of the forward pass."""
    if isinstance(x, Proxy):
        raise MMRepMLPError(
            f"{type(module).__name__} cannot be traced by torch.fx, which efficient_conv_bn_eval uses. Leave the part "
            "of the model that contains it out of efficient_conv_bn_eval."
        )


def is_symbolic(size: int | torch.SymInt) -> bool:
    """Whether a size is symbolic in an export, so that no branch may depend on its value."""
    return isinstance(size, torch.SymInt)


def multiply_add(x: Tensor, factor: Tensor, addend: Tensor) -> Tensor:
    """Compute ``x * factor + addend`` with broadcasting, in eager mode in one pass over the memory."""
    if is_plain():  # compilers fuse it themselves, and torch 2.6 cannot export addcmul with symbolic sizes
        return x * factor + addend
    return torch.addcmul(addend, x, factor)


def count_tiles(size: int, side: int) -> int:
    """Return the number of tiles that cover one side of a feature map."""
    # Not -(-size // side): exporters round negative quotients up. No remainders either: those of symbolic sizes nest
    # from stage to stage, and an exporter spends minutes on them.
    return (size + side - 1) // side


def pad_to_multiple(x: Tensor, h: int, w: int) -> Tensor:
    """Pad a feature map (..., H, W) with zeros at the bottom and the right to whole multiples of ``h`` by ``w``."""
    if h == w == 1:  # keeps the padding out of graphs with symbolic sizes
        return x
    bottom, right = (count_tiles(size, side) * side - size for size, side in zip(x.shape[-2:], (h, w)))
    if not is_symbolic(bottom) and not is_symbolic(right) and not bottom and not right:
        return x
    return F.pad(x, (0, right, 0, bottom))


def build_batch_norm(norm_cfg: dict, channels: int) -> _BatchNorm:
    """Build a batch norm from its config.

    It has to be BN, SyncBN or another subclass of torch's batch norm: no other norm can be fused into a convolution.
    """
    try:
        norm = build_norm_layer(norm_cfg, channels)[1]
    except (AssertionError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"norm_cfg={norm_cfg} does not build a norm ({type(error).__name__}: {error}). Expected e.g. "
            "dict(type='BN') or dict(type='SyncBN')."
        ) from error
    if not isinstance(norm, _BatchNorm):
        raise ValueError(
            f"norm_cfg={norm_cfg} builds a {type(norm).__name__}. Only batch norms can be fused into weights: use "
            "dict(type='BN') or dict(type='SyncBN')."
        )
    return norm


class ScaleShift(nn.Module):
    """Scale and shift left over from a batch norm that no other layer can take in: ``x * weight + bias``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        return multiply_add(x, self.weight.view(-1, 1, 1), self.bias.view(-1, 1, 1))

    def extra_repr(self) -> str:
        return str(self.weight.numel())


class ConvNorm(Reparameterizable):
    """A convolution, a batch norm, which the deploy form fuses into it, and optionally a ReLU.

    Args:
        conv: The convolution, with a bias in deploy form.
        norm_cfg: Config of the batch norm.
        relu: Whether a ReLU follows. Default: False.
        pad: Whether to pad feature maps to whole strides, so that an odd row or column is not lost. Default: False.
        names: Names of the convolution and the batch norm. Default: ``("conv", "bn")``.
        deploy: Whether to build the deploy form. Default: False.
    """

    def __init__(
        self,
        conv: nn.Module,
        norm_cfg: dict,
        relu: bool = False,
        pad: bool = False,
        names: tuple[str, str] = ("conv", "bn"),
        deploy: bool = False,
    ) -> None:
        super().__init__(deploy=deploy)
        self.names, self.pad = names, pad
        self.add_module(names[0], conv)
        self.add_module(names[1], nn.Identity() if deploy else build_batch_norm(norm_cfg, conv.out_channels))
        self.relu = nn.ReLU(inplace=True) if relu else nn.Identity()

    @property
    def pair(self) -> tuple[nn.Module, nn.Module]:
        """The convolution, and the batch norm or, in deploy form, an identity."""
        return getattr(self, self.names[0]), getattr(self, self.names[1])

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I, H, W) as the convolution does."""
        conv, norm = self.pair
        return self.relu(norm(conv(pad_to_multiple(x, *conv.stride) if self.pad else x)))

    def to_affine(self) -> Affine:
        """Return kernel and bias of the convolution with the norm fused into it."""
        return fuse_after(*map(affine, self.pair))

    def equivalents(self) -> dict[str, Affine]:
        """Return the fused convolution."""
        return {self.names[0]: self.to_affine()}

    def vanishing(self) -> Iterable[str]:
        """Return the name of the batch norm."""
        return [self.names[1]]


class GroupedLinear(nn.Module):
    """Parallel fully connected layers, one for each group of features.

    They are computed as one batched matrix product. The weight keeps the shape of the grouped 1x1 convolution that the
    authors and mmpretrain use, so that checkpoints are interchangeable.

    Args:
        groups: Number of groups G.
        in_features: Number of inputs P of each group.
        out_features: Number of outputs Q of each group.
        bias: Whether to add a bias. Default: False.
    """

    def __init__(self, groups: int, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.groups, self.in_features, self.out_features = groups, in_features, out_features
        self.weight = nn.Parameter(torch.empty(groups * out_features, in_features, 1, 1))
        self.bias = nn.Parameter(torch.empty(groups * out_features)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize as torch does a linear layer with P inputs."""
        bound = 1 / math.sqrt(self.in_features)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Map (G, M, P) to (G, M, Q)."""
        out = self.multiply(x, self.weight.view(self.groups, self.out_features, self.in_features))
        return out if self.bias is None else out.add_(self.bias.view(self.groups, 1, self.out_features))

    def multiply(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Map (G, M, P) by matrices (G, Q, P) to (G, M, Q)."""
        return torch.bmm(x, matrices.transpose(1, 2))

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"groups={self.groups}, {sizes}, bias={self.bias is not None}"


def recompute(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Call a function of a module, in training with ``with_cp`` without keeping its activations.

    The backward pass then calls the function again.
    """
    if not (module.with_cp and module.training and torch.is_grad_enabled()):
        return function(x)
    if torch.compiler.is_compiling():
        return checkpoint(function, x, use_reentrant=False)
    return checkpoint(function, x, use_reentrant=False, context_fn=lambda: (nullcontext(), keep_statistics(module)))


@contextmanager
def keep_statistics(module: nn.Module) -> Iterator[None]:
    """Keep running statistics unchanged, so that a batch that is computed twice counts once."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    saved = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, count in saved:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)

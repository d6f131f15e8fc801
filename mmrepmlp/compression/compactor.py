# SPDX-License-Identifier: Apache-2.0
"""Compactors: pointwise convolutions behind layers, of which training makes whole rows vanish (ResRep)."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmrepmlp.reparam import Affine, fuse_after
from mmrepmlp.reparam.fuse import affine_of_layer, to_float64

VANISHED = 1e-5  # the norm of a row below which it counts as zero


class Compactor(nn.Module):
    """A pointwise convolution without bias that starts as the identity.

    Args:
        channels: Number of channels D.

    Attributes:
        weight: Shape (D, D, 1, 1).
        mask: 0 for each row that is to vanish, 1 for each other; shape (D,).
    """

    mask: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(channels)[..., None, None])
        self.register_buffer("mask", torch.ones(channels))

    def forward(self, x: Tensor, features_last: bool = False) -> Tensor:
        """Map (N, D, H, W) to the same shape; (..., D) where features are last, as behind linear layers."""
        return F.linear(x, self.weight.flatten(1)) if features_last else F.conv2d(x, self.weight)

    def norms(self) -> Tensor:
        """Euclidean norm of each row, shape (D,)."""
        return self.weight.flatten(1).norm(dim=1)


class Compacted:
    """What a layer becomes with a compactor behind it; its own tensors keep their names."""

    compactor: Compactor

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gives, behind the compactor."""
        return self.compactor(super().forward(x), isinstance(self, nn.Linear) or x.dim() == 2)

    def to_affine(self) -> Affine:
        """Layer and compactor as one multiplication, of a norm by a matrix (D, D), and an addition."""
        matrix = to_float64(self.compactor.weight.flatten(1))
        layer = affine_of_layer(self)
        if layer.weight.dim() == 1:
            return Affine(matrix * layer.weight, matrix @ layer.bias)
        return fuse_after(layer, Affine(matrix, matrix.new_zeros(len(matrix))))

    def drop_fused(self) -> None:
        """Become the plain layer again, once its weight holds what the compactor did."""
        remove_compactor(self)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # Any trained checkpoint starts a training: without compactors in it, they are as they start.
        if not any(name.startswith(f"{prefix}compactor.") for name in state_dict):
            fresh = Compactor(len(self.compactor.mask)).to(self.compactor.weight)
            state_dict.update({f"{prefix}compactor.{name}": value for name, value in fresh.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


@functools.cache
def compacted(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of layers of a kind with a compactor behind them."""
    return type(f"Compacted{kind.__name__}", (Compacted, kind), {})


def add_compactor(layer: nn.Module, channels: int) -> None:
    """Put a compactor behind a layer, in place."""
    like = next(layer.parameters())
    layer.compactor = Compactor(channels).to(like).train(layer.training)
    layer.__class__ = compacted(type(layer))


def reattach_compactors(model: nn.Module) -> None:
    """Give layers that were converted with a compactor inside, as batch norms to SyncBatchNorm, back what they do."""
    for module in model.modules():
        if isinstance(getattr(module, "compactor", None), Compactor) and not isinstance(module, Compacted):
            module.__class__ = compacted(type(module))


def remove_compactor(layer: nn.Module) -> None:
    """Take the compactor behind a layer away, in place."""
    del layer.compactor
    layer.__class__ = type(layer).__mro__[2]


def remove_compactors(model: nn.Module) -> None:
    """Take all compactors of a model away, in place."""
    for module in list(model.modules()):
        if isinstance(module, Compacted):
            remove_compactor(module)


def compactors_in(model: nn.Module) -> dict[str, Compactor]:
    """The compactors of a model, by the names of the layers they are behind."""
    return {name: module.compactor for name, module in model.named_modules() if isinstance(module, Compacted)}

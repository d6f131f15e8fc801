# SPDX-License-Identifier: Apache-2.0
"""Compactors: pointwise convolutions after layers, whose rows vanish in training (ResRep)."""

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
        mask: 0 for each row that is to vanish, 1 for the others; shape (D,).
    """

    mask: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(channels)[..., None, None])
        self.register_buffer("mask", torch.ones(channels))

    def forward(self, x: Tensor, features_last: bool = False) -> Tensor:
        """Map (N, D, H, W) to the same shape; (..., D) if features are last, as after linear layers."""
        return F.linear(x, self.weight.flatten(1)) if features_last else F.conv2d(x, self.weight)

    def norms(self) -> Tensor:
        """Return the Euclidean norm of each row, shape (D,)."""
        return self.weight.flatten(1).norm(dim=1)


class Compacted:
    """Mixin of layers with a compactor after them; the tensors of the layer keep their names."""

    compactor: Compactor

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer, then the compactor."""
        return self.compactor(super().forward(x), isinstance(self, nn.Linear) or x.dim() == 2)

    def to_affine(self) -> Affine:
        """Return weight and bias of layer and compactor as one; for a norm, the weight is a matrix (D, D)."""
        matrix = to_float64(self.compactor.weight.flatten(1))
        layer = affine_of_layer(self)
        if layer.weight.dim() == 1:
            return Affine(matrix * layer.weight, matrix @ layer.bias)
        return fuse_after(layer, Affine(matrix, matrix.new_zeros(len(matrix))))

    def drop_fused(self) -> None:
        """Remove the compactor, which the layer's weight includes now."""
        remove_compactor(self)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # Training can start from any checkpoint: compactors that it lacks start as the identity.
        if not any(name.startswith(f"{prefix}compactor.") for name in state_dict):
            fresh = Compactor(len(self.compactor.mask)).to(self.compactor.weight)
            state_dict.update({f"{prefix}compactor.{name}": value for name, value in fresh.state_dict().items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


@functools.cache
def compacted(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class for layers of a type with a compactor after them."""
    return type(f"Compacted{kind.__name__}", (Compacted, kind), {})


def add_compactor(layer: nn.Module, channels: int) -> None:
    """Add a compactor after a layer, in place."""
    like = next(layer.parameters())
    layer.compactor = Compactor(channels).to(like).train(layer.training)
    layer.__class__ = compacted(type(layer))


def reattach_compactors(model: nn.Module) -> None:
    """Restore the class of layers with a compactor that were converted, as batch norms to SyncBatchNorm."""
    for module in model.modules():
        if isinstance(getattr(module, "compactor", None), Compactor) and not isinstance(module, Compacted):
            module.__class__ = compacted(type(module))


def remove_compactor(layer: nn.Module) -> None:
    """Remove the compactor after a layer, without fusing it, in place."""
    del layer.compactor
    layer.__class__ = type(layer).__mro__[2]


def remove_compactors(model: nn.Module) -> None:
    """Remove all compactors of a model, without fusing them, in place."""
    for module in list(model.modules()):
        if isinstance(module, Compacted):
            remove_compactor(module)


def compactors_in(model: nn.Module) -> dict[str, Compactor]:
    """Return the compactors of a model, by the names of the layers before them."""
    return {name: module.compactor for name, module in model.named_modules() if isinstance(module, Compacted)}

# SPDX-License-Identifier: Apache-2.0
"""Weights that torch computes from other tensors: weight norm, spectral norm, pruning masks, any parametrization."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

REMOVERS = {WeightNorm: remove_weight_norm, SpectralNorm: remove_spectral_norm, prune.BasePruningMethod: prune.remove}
PART = re.compile(r"(^|\.)((weight|bias)_(orig|mask|g|u|v)$|parametrizations\.)")


@contextmanager
def steady_weights(root: nn.Module) -> Iterator[None]:
    """Keep spectral norms from updating themselves when their weights are read."""
    moving = [part for owner in parametrized(root) for part in owner.parametrizations.modules() if part.training]
    for part in moving:
        part.training = False
    try:
        yield
    finally:
        for part in moving:
            part.training = True


def parametrized(root: nn.Module) -> list[nn.Module]:
    """Return the layers with parametrizations."""
    return [module for module in root.modules() if parametrize.is_parametrized(module)]


def hooked_weights(root: nn.Module) -> list[tuple[nn.Module, str, Callable[[nn.Module, str], object]]]:
    """Return layer, name and remover of the weights that older wrappers and pruning compute before each pass."""
    return [
        (module, hook.name if hasattr(hook, "name") else hook._tensor_name, remove)
        for module in root.modules()
        for hook in module._forward_pre_hooks.values()
        for kind, remove in REMOVERS.items()
        if isinstance(hook, kind)
    ]


def make_weights_plain(root: nn.Module) -> None:
    """Replace the weights that are computed for layers by plain parameters, in place."""
    for module, name, remove in hooked_weights(root):
        trainable = any(p.requires_grad for path, p in module.named_parameters() if path.startswith(f"{name}_"))
        remove(module, name)
        getattr(module, name).requires_grad_(trainable)
    for module in parametrized(root):
        weights = {
            name: nn.Parameter(getattr(module, name).detach(), any(part.requires_grad for part in parts.parameters()))
            for name, parts in module.parametrizations.items()
        }
        # Not by remove_parametrizations, which removes them from the class, and so from each copy of the layer.
        kind = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        module.__class__ = kind
        for name, weight in weights.items():
            module.register_parameter(name, weight)


def refuse_wrapped(model: nn.Module, names: Iterable[str]) -> None:
    """Check that a state dict has the weights of a model, not tensors from which wrappers compute them.

    A model that is wrapped itself may load these.

    Args:
        model: The model that is about to load.
        names: Names of the tensors.

    Raises:
        ValueError: A tensor is one from which weight norm, spectral norm or pruning computes a weight.
    """
    parts = [name for name in names if PART.search(name)]
    if unknown := sorted(set(parts) - model.state_dict().keys()) if parts else []:
        raise ValueError(
            f"The state dict has {unknown[0]}, from which weight_norm, spectral_norm or pruning computes a weight. "
            "Call torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm, remove_spectral_norm or "
            "prune.remove on the model before you save it."
        )

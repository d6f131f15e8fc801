# SPDX-License-Identifier: Apache-2.0
"""The walk that converts what can be converted in any model."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .module import Reparameterizable, forget_traces, outermost
from .wrapped import steady_weights

# What a module converts itself by: RepVGG's protocol, which mmpretrain shares, then timm's two.
METHODS = ("switch_to_deploy", "fuse", "reparameterize")


def switch_to_deploy(model: nn.Module) -> nn.Module:
    """Convert every re-parameterizable part of a model to its deploy form, in place.

    Serves any model with parts that convert themselves: RepMLPNet inside a classifier, a segmentor, a detector or a
    distributed wrapper, backbones of other packages with a method ``switch_to_deploy``, and timm's modules with
    ``reparameterize`` or ``fuse``. Calling it twice is harmless. Device, dtype and training mode stay as they are.

    Args:
        model: The model to convert. Outputs in eval mode stay the same up to rounding.

    Returns:
        The same object; if the model itself is one that timm's ``fuse`` replaces, what replaces it.
    """
    modules = convertible_modules(model).values()
    ours = [module for module in modules if isinstance(module, Reparameterizable)]
    if len(ours) > 1:  # what raises does so before the first of them is converted
        with torch.no_grad(), steady_weights(model):
            for module in ours:
                module.equivalents()
    replaced = {}
    for module in modules:
        if isinstance(module, Reparameterizable):  # which keeps its dtype by itself, and that of quantizers
            module.switch_to_deploy()
            continue
        with building_like(module):
            result = conversion_of(module)()
        if isinstance(result, nn.Module) and result is not module:
            replaced[module] = result.train(module.training)
        elif not hasattr(module, "deploy"):  # nothing tells the form of some, and the layers that they build train
            module.train(module.training)
            module.deploy = True
    for parent in list(model.modules()) if replaced else ():
        for name, child in parent._modules.items():
            if child in replaced:
                setattr(parent, name, replaced[child])
    if modules:
        forget_traces(model)
    return replaced.get(model, model)


@contextmanager
def building_like(module: nn.Module) -> Iterator[None]:
    """Let layers be built in the dtype and on the device of a module; timm's are built as torch builds by default."""
    before, like = torch.get_default_dtype(), next(module.parameters(), torch.empty(0))
    torch.set_default_dtype(like.dtype if like.is_floating_point() else before)
    try:
        with like.device:
            yield
    finally:
        torch.set_default_dtype(before)


def convertible_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost modules that :func:`switch_to_deploy` converts, by name, without those in deploy form already; the
    name of the model itself is empty."""
    found = outermost(model, lambda module: conversion_of(module) is not None)
    return {name: module for name, module in found.items() if not is_converted(module)}


def conversion_of(module: nn.Module) -> Callable[[], object] | None:
    """The method that converts a module, one that needs no arguments; None if it has none."""
    for name in METHODS:
        method = getattr(module, name, None)
        if inspect.ismethod(method):
            with suppress(TypeError):  # of arguments that it needs
                inspect.signature(method).bind()
                return method
    return None


def is_converted(module: nn.Module) -> bool:
    """Whether a module is in deploy form: as it says itself, or else since timm has left no batch norm in it."""
    if hasattr(module, "deploy") or hasattr(module, "switch_to_deploy"):
        return bool(getattr(module, "deploy", False))
    return not any(isinstance(part, _BatchNorm) for part in module.modules())

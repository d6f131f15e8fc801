# SPDX-License-Identifier: Apache-2.0
"""Convert all convertible modules of any model."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .module import Reparameterizable, forget_traces, outermost
from .wrapped import steady_weights

# Methods by which modules convert themselves: RepVGG's, which mmpretrain shares, then timm's two.
METHODS = ("switch_to_deploy", "fuse", "reparameterize")


def switch_to_deploy(model: nn.Module) -> nn.Module:
    """Convert every re-parameterizable part of a model to its deploy form, in place.

    It works on any model with parts that convert themselves: RepMLPNet inside a classifier, a segmentor, a detector or
    a distributed wrapper, backbones of other packages with a method ``switch_to_deploy``, and timm's modules with
    ``reparameterize`` or ``fuse``. Calling it twice is harmless. Device, dtype and training mode stay as they are.

    Args:
        model: The model to convert. Outputs in eval mode stay the same up to rounding.

    Returns:
        The same object, or its replacement if timm's ``fuse`` replaces the model itself.
    """
    modules = convertible_modules(model).values()
    ours = [module for module in modules if isinstance(module, Reparameterizable)]
    if len(ours) > 1:  # to raise any error before the first of them is converted
        with torch.no_grad(), steady_weights(model):
            for module in ours:
                module.equivalents()
    replaced = {}
    for module in modules:
        if isinstance(module, Reparameterizable):  # keeps its dtype, and that of its quantizers, by itself
            module.switch_to_deploy()
            continue
        with building_like(module):
            result = conversion_of(module)()
        if isinstance(result, nn.Module) and result is not module:
            replaced[module] = result.train(module.training)
        elif not hasattr(module, "deploy"):  # some do not show their form, and build layers in training mode
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
    """Build layers in the dtype and on the device of a module by default; timm does not set them."""
    before, like = torch.get_default_dtype(), next(module.parameters(), torch.empty(0))
    torch.set_default_dtype(like.dtype if like.is_floating_point() else before)
    try:
        with like.device:
            yield
    finally:
        torch.set_default_dtype(before)


def convertible_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the outermost modules that :func:`switch_to_deploy` would convert, by name.

    Modules in deploy form are left out. The name of the model itself is empty.
    """
    found = outermost(model, converts_itself)
    return {name: module for name, module in found.items() if not is_converted(module)}


def converts_itself(module: nn.Module) -> bool:
    """Whether a module has a conversion of its own; MMPose's models just pass the call on to their parts."""
    passes_on = not isinstance(module, Reparameterizable) and any(
        isinstance(part, Reparameterizable) for part in module.modules()
    )
    return conversion_of(module) is not None and not passes_on


def conversion_of(module: nn.Module) -> Callable[[], object] | None:
    """Return the method without required arguments that converts a module; None if there is none."""
    for name in METHODS:
        method = getattr(module, name, None)
        if inspect.ismethod(method):
            with suppress(TypeError):  # it requires arguments
                inspect.signature(method).bind()
                return method
    return None


def is_converted(module: nn.Module) -> bool:
    """Whether a module is in deploy form: by its attribute ``deploy`` or, for timm's, if it has no batch norm."""
    if hasattr(module, "deploy") or hasattr(module, "switch_to_deploy"):
        return bool(getattr(module, "deploy", False))
    return not any(isinstance(part, _BatchNorm) for part in module.modules())

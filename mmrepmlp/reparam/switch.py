# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterable
from itertools import chain

from torch import Tensor, nn


class Reparameterizable:
    """Mixin for modules with a training form and an equivalent, cheaper deploy form.

    A subclass implements :attr:`deploy` and :meth:`switch_to_deploy`.
    """

    @property
    def deploy(self) -> bool:
        """Whether the module is in deploy form."""
        raise NotImplementedError

    def switch_to_deploy(self) -> None:
        """Convert to deploy form in place. Does nothing on a module that is in deploy form already."""
        raise NotImplementedError


def set_weight_and_bias(layer: nn.Module, weight: Tensor, bias: Tensor, norms: Iterable[nn.Module] = ()) -> None:
    """Replace the parameters of a layer by folded ones, keeping shape, dtype and ``requires_grad``.

    Args:
        layer: Has a weight, and may have a bias.
        weight: As many elements as the layer's.
        bias: Shape (O,).
        norms: What was folded. The bias is trainable if the layer's was, or if a parameter of one of these is.
    """
    old, old_bias = layer.weight, getattr(layer, "bias", None)
    biases = [old_bias] if old_bias is not None else []
    trainable = any(p.requires_grad for p in chain(biases, *(norm.parameters() for norm in norms)))
    layer.weight = nn.Parameter(weight.view_as(old).detach().to(old), requires_grad=old.requires_grad)
    layer.bias = nn.Parameter(bias.detach().to(old), requires_grad=trainable)


def switch_to_deploy(model: nn.Module) -> nn.Module:
    """Convert every re-parameterizable part of a model to its deploy form, in place.

    Serves any model with parts that own a ``switch_to_deploy`` method: RepMLPNet inside a classifier, a segmentor, a
    detector or a distributed wrapper, and backbones of other packages that follow the same protocol. Calling it twice
    is harmless. Device, dtype and training mode stay as they are.

    Args:
        model: The model to convert. Outputs in eval mode stay the same up to rounding.

    Returns:
        The same object.
    """
    for module in convertible_modules(model).values():
        module.switch_to_deploy()
    return model


def convertible_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost modules that :func:`switch_to_deploy` converts, by name, without those in deploy form already.

    Args:
        model: A model of any framework, or a single module, whose name is empty.
    """
    found: dict[str, nn.Module] = {}

    def walk(module: nn.Module, name: str) -> None:
        if not hasattr(module, "switch_to_deploy"):
            for child_name, child in module.named_children():
                walk(child, f"{name}.{child_name}".lstrip("."))
        elif not getattr(module, "deploy", False) and module not in found.values():  # a module may be shared
            found[name] = module

    walk(model, "")
    return found

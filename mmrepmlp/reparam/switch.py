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
    convert = getattr(model, "switch_to_deploy", None)
    if convert is None:
        for child in model.children():
            switch_to_deploy(child)
    elif not getattr(model, "deploy", False):
        convert()
    return model

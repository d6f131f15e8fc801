# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor, nn

_differentiable = ContextVar("differentiable", default=False)


class Reparameterizable:
    """Mixin for modules with a training form and an equivalent, cheaper deploy form.

    A subclass implements :attr:`deploy` and :meth:`switch_to_deploy`; the names that the authors' code uses for the
    conversion are accepted as well.
    """

    @property
    def deploy(self) -> bool:
        """Whether the module is in deploy form."""
        raise NotImplementedError

    def switch_to_deploy(self) -> None:
        """Convert to deploy form in place. Does nothing on a module that is in deploy form already."""
        raise NotImplementedError

    def local_inject(self) -> None:
        """The authors' name for :meth:`switch_to_deploy` of a block."""
        self.switch_to_deploy()

    def locality_injection(self) -> None:
        """The authors' name for :meth:`switch_to_deploy` of a network."""
        self.switch_to_deploy()


@contextmanager
def differentiable() -> Iterator[None]:
    """Let conversions inside leave weights that are functions of the training form's parameters.

    Outside, a conversion ends in parameters of its own. For training with the deploy form's arithmetic, on copies that
    share their parameters with the network in training.
    """
    token = _differentiable.set(True)
    try:
        yield
    finally:
        _differentiable.reset(token)


def set_weight_and_bias(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Replace the parameters of a layer by folded ones, keeping shape, dtype and ``requires_grad``."""
    old = layer.weight
    for name, value in (("weight", weight.view_as(old)), ("bias", bias)):
        value = value.to(old)
        if hasattr(layer, name):
            delattr(layer, name)
        keeps_graph = _differentiable.get()
        setattr(layer, name, value if keeps_graph else nn.Parameter(value.detach(), requires_grad=old.requires_grad))


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

# SPDX-License-Identifier: Apache-2.0
"""Modules with a training form and an equivalent, cheaper deploy form."""

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm

from .addition import LinearAddition
from .fuse import Affine
from .wrapped import hooked_weights, make_weights_plain, parametrized, refuse_wrapped, steady_weights


class Reparameterizable(nn.Module):
    """Base class of modules with a training form and a deploy form.

    A subclass returns the weights of the layers of its deploy form in :meth:`equivalents`, the names of modules that
    the deploy form does without in :meth:`vanishing`, and the layers that only the deploy form has in
    :meth:`deploy_layers`. Conversion, and loading weights of the training form into the deploy form, follow from these.

    Args:
        deploy: Whether the subclass builds the deploy form. Default: False.
        **settings: Arguments of the next class in the method resolution order.

    Attributes:
        fused: Whether the module's own layers are in deploy form, whatever re-parameterizable modules inside are.
        arguments: The arguments that the constructor was called with, by name.
    """

    arguments: dict[str, object]

    def __init_subclass__(cls, **settings) -> None:
        super().__init_subclass__(**settings)
        if "__init__" in vars(cls):
            cls.__init__ = record_arguments(cls.__init__)

    def __init__(self, *, deploy: bool = False, **settings) -> None:
        super().__init__(**settings)
        self.fused = deploy

    @property
    def deploy(self) -> bool:
        """Whether the module and all re-parameterizable modules inside are in deploy form."""
        return self.fused and all(part.deploy for part in self.parts().values())

    def apply(self, fn: Callable[[nn.Module], None]) -> "Reparameterizable":
        """Apply a function to all modules inside, as in nn.Module.

        MMEngine's initializers, which only know the type of a layer, are followed by :meth:`restart`.
        """
        if getattr(fn, "__module__", None) != "mmengine.model.weight_init":
            return super().apply(fn)
        before = {name: self.get_parameter(name).clone() for name in self.linear_additions()}
        super().apply(fn)
        self.restart({name for name, weight in before.items() if not weight.equal(self.get_parameter(name))})
        return self

    def restart(self, initialized: Collection[str] = ()) -> None:
        """Set initial values that differ from those of other layers of the same type.

        Args:
            initialized: Names of weights that stand for sums and have just been initialized as one part of them.
        """

    def linear_additions(self) -> dict[str, LinearAddition]:
        """Return the sums that parameters stand for, by name, where gradients are re-parameterized."""
        return {}

    def parts(self) -> dict[str, "Reparameterizable"]:
        """Return the outermost re-parameterizable modules inside, by name."""
        return outermost(self, lambda module: module is not self and isinstance(module, Reparameterizable))

    def equivalents(self) -> dict[str, Affine]:
        """Return weight and bias of the layers of the deploy form that conversion writes, by name.

        They are differentiable with respect to every parameter involved, float64, and valid in both forms. Default:
        those of the re-parameterizable modules inside.
        """
        return {
            f"{path}.{name}": layer for path, part in self.parts().items() for name, layer in part.equivalents().items()
        }

    def vanishing(self) -> Iterable[str]:
        """Return the names of modules that the deploy form does without.

        An identity replaces a batch norm, so that both forms call the same children; anything else is removed.
        Re-parameterizable modules inside name their own.
        """
        return ()

    def deploy_layers(self) -> dict[str, nn.Module]:
        """Build the layers that only the deploy form has, by name; conversion writes :meth:`equivalents` to them."""
        return {}

    def switch_to_deploy(self, *_: object) -> None:
        """Convert to deploy form in place; a module that is in deploy form stays as it is.

        Device, dtype, training mode and ``requires_grad`` stay as they are. If the conversion raises, nothing has
        changed. Arguments, which MMPose's models pass, have no effect.
        """
        if self.deploy:
            return
        with torch.no_grad(), steady_weights(self):
            if parametrized(self) or hooked_weights(self):
                self.equivalents()  # to raise any error before anything changes
                make_weights_plain(self)
            self.write(self.equivalents())
        forget_traces(self)

    def write(self, layers: Mapping[str, Affine]) -> None:
        """Replace the parameters of layers, by name, and remove or replace the vanishing modules."""
        gone = {} if self.fused else {name: self.get_submodule(name) for name in self.vanishing()}
        new = {}
        if not self.fused:
            with torch.device("meta"):
                new = self.deploy_layers()
        rest = dict(layers)
        for path, part in self.parts().items():
            inner = {name: rest.pop(name) for name in layers if name.startswith(f"{path}.")}
            if not f"{path}.".startswith(tuple(f"{name}." for name in gone)):
                part.write({name.removeprefix(f"{path}."): layer for name, layer in inner.items()})
        before = dict(self.named_modules(remove_duplicate=False))
        for name, layer in rest.items():
            old = before.get(name)
            target = new.get(name, old)
            write_layer(target, layer, old, gone.values())
            if target is not old:
                replace_module(self, name, target.train(self.training if old is None else old.training))
        for name, module in gone.items():
            is_norm = isinstance(module, (_BatchNorm, nn.Identity))  # an identity replaces a norm that was fused before
            replace_module(self, name, nn.Identity().train(module.training) if is_norm else None)
        self.fused = True

    def build_training_form(self, **changes: object) -> "Reparameterizable":
        """Build the training form of this module, with changed arguments; weights are not copied."""
        return type(self)(**{**self.arguments, "deploy": False, **changes})

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        refuse_wrapped(self, [name.removeprefix(prefix) for name in state_dict if name.startswith(prefix)])
        if self.fused:
            self.fuse_loaded(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def fuse_loaded(self, state_dict: dict, prefix: str) -> None:
        """Convert the tensors of this module in a state dict if they are those of its whole training form."""
        loaded = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        if not any(name.endswith("running_var") for name in loaded) or loaded.keys() <= self.state_dict().keys():
            return
        with torch.device("meta"):
            source = self.build_training_form()
        if required_tensors(source, loaded).keys() == loaded.keys():
            for name in loaded:
                del state_dict[prefix + name]
            fused = fuse_state_dict(source, loaded)
            state_dict.update({prefix + name: value for name, value in fused.items()})


def record_arguments(init: Callable) -> Callable:
    """Let a constructor keep its arguments by name, unless the constructor of a subclass has kept its own."""
    names = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def recording(self: Reparameterizable, *args, **settings) -> None:
        self.__dict__.setdefault("arguments", {**dict(zip(names, args)), **settings})
        init(self, *args, **settings)

    return recording


def write_layer(layer: nn.Module, values: Affine, old: nn.Module | None, gone: Iterable[nn.Module]) -> None:
    """Set weight and bias of a layer, in the dtype and on the device of the parameters that they replace.

    A parameter keeps the ``requires_grad`` of the one that it replaces, in ``old``, perhaps the layer itself. A new
    weight is trainable if any vanishing module was, a new bias if a vanishing norm was.
    """
    inside = [module for part in gone for module in part.modules()]
    norms = [module for module in inside if isinstance(module, _BatchNorm)]
    like = next(chain(*(chain(m.parameters(), m.buffers()) for m in (old, *gone) if m is not None)))
    shape = layer.weight.shape
    for name, value, sources in (("weight", values.weight.view(shape), inside), ("bias", values.bias, norms)):
        before = getattr(old, name, None)
        if before is None:
            trainable = any(p.requires_grad for module in sources for p in module.parameters(recurse=False))
        else:
            like, trainable = before, before.requires_grad
        setattr(layer, name, nn.Parameter(value.detach().to(like), requires_grad=trainable))
    if hasattr(layer, "drop_fused"):  # parts besides weight and bias that its ``to_affine`` included
        layer.drop_fused()


def replace_module(root: nn.Module, path: str, module: nn.Module | None) -> None:
    """Replace the module of a dotted name, or remove it."""
    parent, _, name = path.rpartition(".")
    if module is None:
        delattr(root.get_submodule(parent), name)
    else:
        setattr(root.get_submodule(parent), name, module)


def required_tensors(source: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that a state dict needs for a network: all but the counters of batches that it lacks."""
    wanted = source.state_dict().items()
    return {name: value for name, value in wanted if name in state or not name.endswith("num_batches_tracked")}


def fuse_state_dict(source: Reparameterizable, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state dict of a module to deploy form, in float32 or higher precision.

    Args:
        source: The module in training form, on the meta device; it is converted in place.
        state: The state dict.

    Returns:
        The state dict of the deploy form.
    """
    precise = OrderedDict((n, v.float() if v.is_floating_point() and v.itemsize < 4 else v) for n, v in state.items())
    # The metadata of the source fits the state, except for versions: counters of batches may be missing.
    metadata = source.state_dict()._metadata.items()
    precise._metadata = {name: {key: notes[key] for key in notes if key != "version"} for name, notes in metadata}
    nn.Module.load_state_dict(source, precise, assign=True)
    source.switch_to_deploy()
    return source.state_dict()


def outermost(root: nn.Module, test: Callable[[nn.Module], bool]) -> dict[str, nn.Module]:
    """Return the modules that pass a test and are not inside another one that does, each once, by name."""
    found: dict[str, nn.Module] = {}

    def walk(module: nn.Module, name: str) -> None:
        if not test(module):
            for child_name, child in module.named_children():
                walk(child, f"{name}.{child_name}".lstrip("."))
        elif module not in found.values():  # a module may be shared
            found[name] = module

    walk(root, "")
    return found


def forget_traces(model: nn.Module) -> None:
    """Remove traced forward passes, with which MMEngine's efficient_conv_bn_eval replaces methods: they are of the
    training form."""
    for module in model.modules():
        if isinstance(getattr(vars(module).get("forward"), "__self__", None), GraphModule):
            del module.forward

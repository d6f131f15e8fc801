# SPDX-License-Identifier: Apache-2.0
"""Which channels of a model can be removed without a trace: what computes them, and what reads them."""

import copy
import inspect
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from mmrepmlp.compression.compactor import remove_compactors
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.models import image_channels, image_size
from mmrepmlp.models.convs import ReparameterizableConv2d
from mmrepmlp.models.convs.branches import IdentityBranch
from mmrepmlp.models.repmlpnet.block import PixelConv, RepMLPBlock

LAYERS = (nn.Conv2d, nn.Linear)
# What autograd calls operations that make a zero of a zero. Behind any other, a removed channel would leave a constant.
KEEP_ZEROS = ("Relu", "Gelu", "LeakyRelu", "Silu", "Hardswish", "Mish", "Elu", "Tanh", "MaxPool", "AvgPool")
KEEP_ZEROS += ("AdaptiveAvgPool", "Mean", "Upsample", "Clone", "NativeDropout")
# Those that compute each channel from that channel, of one map or of several.
PER_CHANNEL = (*KEEP_ZEROS, "AddBackward", "Addcmul", "MulBackward", "Sigmoid", "Hardsigmoid", "Hardtanh", "Clamp")
MARK = torch.sign  # of outputs, which other layers may read as well
ACTIVATIONS = dict(Relu=F.relu, Gelu=F.gelu, Silu=F.silu, Hardswish=F.hardswish, Mish=F.mish, Elu=F.elu)
ACTIVATIONS |= dict(LeakyRelu=F.leaky_relu, Tanh=torch.tanh, Sigmoid=torch.sigmoid)


class CompressionError(MMRepMLPError):
    """A model, or a layer that was named, cannot be compressed as asked."""


@dataclass(frozen=True)
class Behind:
    """What follows a layer, before anything else reads it.

    Attributes:
        norm: Name of the batch norm; None if there is none.
        activation: The activation behind it; the identity if there is none.
    """

    norm: str | None
    activation: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels inside of a model, from the layers that compute them to those that read them.

    Layers are convolutions, linear layers and re-parameterizable convolutions.

    Attributes:
        writers: Names of the layers whose filters compute the channels. A residual stream has several; the first is the
            one that its block does not add to it, a stem or a projection.
        norms: Names of the batch norms on the way.
        readers: Names of the layers that read these channels and no others.
        channels: How many there are.
        behind: What follows each reader, by its name.
        removable: Whether a channel whose filter is zero is zero for all readers, and one layer alone computes it.
        sets: Number of sets that RepMLPNet takes the channels for: channel ``c`` belongs to set ``c % sets``, whatever
            is removed.
    """

    writers: tuple[str, ...]
    norms: tuple[str, ...]
    readers: tuple[str, ...]
    channels: int
    behind: Mapping[str, Behind]
    removable: bool = True
    sets: int = 1

    @property
    def writer(self) -> str:
        """The first of the layers that compute the channels, after which the group is named."""
        return self.writers[0]

    @property
    def last(self) -> str:
        """Where one layer computes the channels: the batch norm behind it, or else that layer."""
        return self.norms[0] if self.norms else self.writer


def find_groups(
    model: nn.Module, layers: Sequence[str] | None = None, streams: bool = False
) -> dict[str, ChannelGroup]:
    """Find the channels that can be removed without a trace, by the names of the layers that compute them.

    These are internal ones: computed by one layer that is trained, with at most a batch norm behind it, and read by
    other layers through activations that map zero to zero. Channels of residual streams can only be merged where they
    are equal. Outputs of the model stay as they are. The model is traced by torch-pruning, ``pip install
    mmrepmlp[prune]``.

    Args:
        model: A model of any framework, or a bare backbone, in training form.
        layers: Names of the layers whose filters may be removed, or parts of the names from dot to dot. Default: all
            that can.
        streams: Whether to find channels that can be merged as well: those that several layers write, as residual
            streams and the lateral convolutions of an FPN. Default: False.

    Raises:
        CompressionError: Filters of the model, or of a layer that is named, cannot be removed.
        ImportError: torch-pruning is not installed.
    """
    graph, names = trace(model)
    groups = [group_of(graph, names, module) for module in names if module in graph.module2node]
    groups = list({frozenset(group.writers): group for group in groups if group and is_trained(model, group)}.values())
    inside = {reader for group in groups if len(group.writers) == 1 for reader in group.readers}
    groups = [complete(model, group, inside) for group in groups if streams or group.removable]
    if not groups:
        raise CompressionError(
            f"{type(model).__name__} has no layer whose filters can be removed: none is inside of a block, trained and "
            "followed by an activation that maps zero to zero."
        )
    found = {group.writer: group for group in groups}
    return found if layers is None else select(found, layers)


def is_trained(model: nn.Module, group: ChannelGroup) -> bool:
    """Whether all filters of a group are trained, each by itself: none that a branch copies from its input, and no
    weights that other layers share."""
    owners = Counter(parameter for module in model.modules() for parameter in module.parameters(recurse=False))
    layers = [model.get_submodule(name) for name in (*group.writers, *group.norms, *group.readers)]
    writers = layers[: len(group.writers)]
    return (
        all(parameter.requires_grad for writer in writers for parameter in writer.parameters())
        and all(owners[parameter] == 1 for layer in layers for parameter in layer.parameters())
        and not any(isinstance(branch, IdentityBranch) for writer in writers for branch in writer.modules())
    )


def complete(model: nn.Module, group: ChannelGroup, inside: Collection[str]) -> ChannelGroup:
    """A group with the number of its sets, and with that writer first that others follow: one that does not read
    channels from the inside of a block."""
    sets = [
        block.num_sharesets
        for name, block in model.named_modules()
        if isinstance(block, RepMLPBlock) and f"{name}.gp.conv2.conv" in group.writers
    ]
    writers = sorted(group.writers, key=lambda name: name in inside)  # stable, in the model's order
    return replace(group, writers=tuple(writers), sets=math.lcm(*sets))


def select(groups: dict[str, ChannelGroup], layers: Sequence[str]) -> dict[str, ChannelGroup]:
    """The groups of layers that are given by their names, or by parts of them."""
    chosen = {}
    for layer in layers:
        matching = {
            name: group for name, group in groups.items() if any(named(writer, layer) for writer in group.writers)
        }
        if not matching:
            raise CompressionError(
                f"layers: no filter of {layer!r} can be removed. There is no such layer, or it is frozen, or others "
                "share its channels, as in a residual stream, which C-SGD alone can merge (streams=True). Expected "
                f"some of {', '.join(groups)}."
            )
        chosen |= matching
    return chosen


def named(name: str, part: str) -> bool:
    """Whether a dotted name has a part, from dot to dot."""
    return f".{part}." in f".{name}."


def trace(model: nn.Module) -> tuple[object, dict[nn.Module, str]]:
    """Trace a copy of a model; returns torch-pruning's graph, and the names of the copy's modules."""
    try:
        from torch_pruning import DependencyGraph
    except ImportError as error:
        raise ImportError("torch-pruning is not installed: pip install 'mmrepmlp[prune]'") from error

    model = plain_copy(model)
    model.requires_grad_(True)  # frozen layers would be missing in the graph
    for module in model.modules():
        if isinstance(module, RepMLPBlock):  # what is behind each channel of a map is the same channel
            module.perceive_tiles = lambda x: x
        elif isinstance(module, PixelConv):
            module.forward = super(PixelConv, module).forward
        elif isinstance(module, nn.Linear):
            module.forward = lambda x, module=module: Multiplication.apply(x, module.weight, module.bias)
        elif hasattr(module, "inplace"):  # whose inputs autograd would lose
            module.inplace = False
    images = torch.randn(1, image_channels(model), *image_size(model), device=next(model.parameters()).device)
    try:
        graph = DependencyGraph().build_dependency(model, images, forward_fn=call_all, verbose=False)
    except Exception as error:  # of whatever torch-pruning does not know
        raise CompressionError(
            f"{type(model).__name__} cannot be traced on random images: {type(error).__name__}: {error}"
        ) from error
    names = {module: name for name, module in model.named_modules()}
    for name, module in model.named_modules():
        if isinstance(module, ReparameterizableConv2d):
            names[module.reparam] = name
    return graph, names


class Multiplication(torch.autograd.Function):
    """A linear layer as one operation, which torch takes apart where inputs have more than two dimensions."""

    @staticmethod
    def forward(ctx: object, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy of a model without compactors, whose re-parameterizable convolutions are plain ones, in eval mode."""
    model = copy.deepcopy(model).float()
    model.eval()
    remove_compactors(model)
    for module in model.modules():
        if isinstance(module, ReparameterizableConv2d):
            module.switch_to_deploy()
    return model


def call(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The outputs of a model's heads; where they need more than images, the feature maps of its backbone and neck."""
    outputs = None
    if "mode" in inspect.signature(model.forward).parameters:
        with suppress(Exception):  # of whatever heads need besides images
            outputs = model(images, mode="tensor")
        outputs = model.extract_feat(images) if outputs is None else outputs
    else:
        outputs = model(images)
    return [MARK(output) for output in differentiable(outputs)]


def differentiable(outputs: object) -> list[Tensor]:
    """The tensors among outputs that depend on weights."""
    return [output for output in tree_leaves(outputs) if isinstance(output, Tensor) and output.requires_grad]


def call_all(model: nn.Module, images: Tensor) -> list[Tensor]:
    """What :func:`call` gives, and what else is computed of images: by layers that nothing reads, feature maps that no
    head reads, and by heads that only train."""
    called: dict[nn.Module, object] = {}
    for module in model.modules():
        module.register_forward_hook(lambda module, _, output: called.update({module: output}))
    if hasattr(model, "backbone"):  # what was before is of a call that failed
        model.backbone.register_forward_pre_hook(lambda *_: called.clear())
    outputs = call(model, images)
    outputs += differentiable([output for module, output in called.items() if isinstance(module, LAYERS)])
    maps = [called[part] for part in (getattr(model, name, None) for name in ("backbone", "neck")) if part in called]
    children = [part for child in model.children() for part in (child if isinstance(child, nn.ModuleList) else [child])]
    for head in children if maps else ():
        layers = [layer for layer in head.modules() if isinstance(layer, LAYERS)]
        if layers and called.keys().isdisjoint(layers):
            for layer in layers:  # whose own channels stay
                layer.register_forward_hook(lambda _, inputs, output: MARK(output))
            try:
                outputs += differentiable(head(maps[-1]))
            except Exception:  # of whatever it needs besides feature maps, all of which stay
                outputs += [MARK(feature) for feature in differentiable(maps[-1])]
    return outputs + differentiable(maps)


def group_of(graph: object, names: dict[nn.Module, str], writer: nn.Module) -> ChannelGroup | None:
    """The group of the channels that a layer computes; None where something needs each of them."""
    from torch_pruning.ops import OPTYPE

    if not isinstance(writer, LAYERS):
        return None
    every, writers, norms, readers, removable = list(range(len(writer.weight))), {}, {}, {}, True
    prune = graph.get_pruner_of_module(writer).prune_out_channels
    for dependency, indices in graph.get_pruning_group(writer, prune, every):
        target, module = dependency.target, dependency.target.module
        if target.type == OPTYPE.ELEMENTWISE:
            operation = target.grad_fn.name()
            removable &= operation.startswith(KEEP_ZEROS)
            if not is_per_channel(target.grad_fn, len(every)):
                return None
        elif target.type == OPTYPE.RESHAPE:
            continue  # what it does to channels shows in the indices of those that read them
        elif isinstance(module, _BatchNorm) and len(module.running_var) == len(every):
            norms[names[module]] = module
        elif isinstance(module, LAYERS):
            reads = graph.is_in_channel_pruning_fn(dependency.handler)
            if getattr(module, "groups", 1) > 1 or list(indices) != every:
                return None
            if module.weight.size(int(reads)) != len(every):
                return None
            (readers if reads else writers)[names[module]] = module
        else:
            return None
    if not readers:
        return None
    behind = {name: what_follows(graph, names, module) for name, module in sorted(readers.items())}
    removable &= len(writers) == 1 and [*norms] in ([], [what_follows(graph, names, writer).norm])
    removable &= all(norm.affine for norm in norms.values())  # others make no zeros
    order = {name: index for index, name in enumerate(names.values())}
    writers, norms = (tuple(sorted(layers, key=order.get)) for layers in (writers, norms))
    return ChannelGroup(writers, norms, tuple(behind), len(every), behind, removable)


def is_per_channel(operation: torch.autograd.graph.Node, channels: int) -> bool:
    """Whether an operation computes each of some channels from that channel alone, of what layers compute."""
    name = operation.name()
    if name.startswith("Mean"):  # of anything but the channels
        sizes = operation._saved_self_sym_sizes
        means = [dim % 2**64 for dim in getattr(operation, "_saved_dim", range(len(sizes)))]  # as torch counts from -1
        return any(size == channels and not {i, i - len(sizes) + 2**64} & {*means} for i, size in enumerate(sizes))
    if name.startswith("Mul") and any(function is None for function, _ in operation.next_functions):
        factors = (operation._saved_self, operation._saved_other)  # a constant, which stays as wide as it is
        return all(factor is None or not factor.dim() for factor in factors)
    return name.startswith(PER_CHANNEL)


def what_follows(graph: object, names: dict[nn.Module, str], layer: nn.Module) -> Behind:
    """The batch norm and the activation behind a layer, as far as nothing else reads what is before them."""
    following = graph.module2node[layer].outputs  # one for each call, of which heads have one for each level
    norms = {node.module for node in following}
    norm = norms.pop() if len(norms) == 1 else None
    if isinstance(norm, _BatchNorm):
        following = graph.module2node[norm].outputs
    else:
        norm = None
    kinds = {node.grad_fn and node.grad_fn.name().partition("Backward")[0] for node in following}
    activation = ACTIVATIONS.get(kinds.pop()) if len(kinds) == 1 else None
    return Behind(norm and names[norm], activation or nn.Identity())

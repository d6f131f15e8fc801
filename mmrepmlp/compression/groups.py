# SPDX-License-Identifier: Apache-2.0
"""Find the channels of a model that can be removed exactly: the layers that compute them, and those that read them."""

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
# Autograd's names of operations that map zero to zero. After any other, a removed channel would leave a constant.
KEEP_ZEROS = ("Relu", "Gelu", "LeakyRelu", "Silu", "Hardswish", "Mish", "Elu", "Tanh", "MaxPool", "AvgPool")
KEEP_ZEROS += ("AdaptiveAvgPool", "Mean", "Upsample", "Clone", "NativeDropout")
# Operations that compute each channel only from that channel, of one feature map or of several.
PER_CHANNEL = (*KEEP_ZEROS, "AddBackward", "Addcmul", "MulBackward", "Sigmoid", "Hardsigmoid", "Hardtanh", "Clamp")
MARK = torch.sign  # marks outputs, which other layers may read as well
ACTIVATIONS = dict(Relu=F.relu, Gelu=F.gelu, Silu=F.silu, Hardswish=F.hardswish, Mish=F.mish, Elu=F.elu)
ACTIVATIONS |= dict(LeakyRelu=F.leaky_relu, Tanh=torch.tanh, Sigmoid=torch.sigmoid)


class CompressionError(MMRepMLPError):
    """The model, or one of the layers to compress, cannot be compressed as requested."""


@dataclass(frozen=True)
class Behind:
    """The batch norm and the activation that follow a layer.

    Attributes:
        norm: Name of the batch norm; None if there is none.
        activation: The activation after it; the identity if there is none.
    """

    norm: str | None
    activation: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels inside of a model, from the layers that compute them to those that read them.

    Layers are convolutions, linear layers and re-parameterizable convolutions.

    Attributes:
        writers: Names of the layers whose filters compute the channels. A residual stream has several; the first is a
            stem or a projection, which no block adds to the stream.
        norms: Names of the batch norms in between.
        readers: Names of the layers that read these channels and no others.
        channels: Number of channels.
        behind: The batch norm and the activation after each reader, by its name.
        removable: Whether only one layer computes the channels, and a zero filter makes its channel zero for all
            readers.
        sets: Number of sets of the channels in RepMLPNet: channel ``c`` belongs to set ``c % sets``, whatever is
            removed.
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
        """The first of the layers that compute the channels, which gives the group its name."""
        return self.writers[0]

    @property
    def last(self) -> str:
        """If one layer computes the channels: the batch norm after it, or that layer if there is none."""
        return self.norms[0] if self.norms else self.writer


def find_groups(
    model: nn.Module, layers: Sequence[str] | None = None, streams: bool = False
) -> dict[str, ChannelGroup]:
    """Find the channels that can be removed exactly, by the names of the layers that compute them.

    These are internal channels: one trained layer computes them, with at most a batch norm after it, and other layers
    read them through activations that map zero to zero. Channels of residual streams can only be merged, if they are
    equal. Output channels of the model are kept. torch-pruning traces the model, ``pip install mmrepmlp[prune]``.

    Args:
        model: A model of any framework, or a bare backbone, in training form.
        layers: Names of the layers whose filters may be removed, or parts of the names between dots. Default: all
            layers whose filters can be removed.
        streams: Whether to also find channels that can be merged: those that several layers write, as residual streams
            and the lateral convolutions of an FPN. Default: False.

    Returns:
        The groups of channels, by the name of the first layer that computes them.

    Raises:
        CompressionError: Filters of the model, or of one of ``layers``, cannot be removed.
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
    """Whether all filters of a group are trained independently: no identity branch copies its input, and no other layer
    shares weights."""
    owners = Counter(parameter for module in model.modules() for parameter in module.parameters(recurse=False))
    layers = [model.get_submodule(name) for name in (*group.writers, *group.norms, *group.readers)]
    writers = layers[: len(group.writers)]
    return (
        all(parameter.requires_grad for writer in writers for parameter in writer.parameters())
        and all(owners[parameter] == 1 for layer in layers for parameter in layer.parameters())
        and not any(isinstance(branch, IdentityBranch) for writer in writers for branch in writer.modules())
    )


def complete(model: nn.Module, group: ChannelGroup, inside: Collection[str]) -> ChannelGroup:
    """Add the number of sets to a group, and put the writer first that begins its stream: one that does not read
    internal channels of a block."""
    sets = [
        block.num_sharesets
        for name, block in model.named_modules()
        if isinstance(block, RepMLPBlock) and f"{name}.gp.conv2.conv" in group.writers
    ]
    writers = sorted(group.writers, key=lambda name: name in inside)  # stable, in the model's order
    return replace(group, writers=tuple(writers), sets=math.lcm(*sets))


def select(groups: dict[str, ChannelGroup], layers: Sequence[str]) -> dict[str, ChannelGroup]:
    """Select the groups of some layers, by their names or parts of them."""
    chosen = {}
    for layer in layers:
        matching = {
            name: group for name, group in groups.items() if any(named(writer, layer) for writer in group.writers)
        }
        if not matching:
            raise CompressionError(
                f"layers: no filter of {layer!r} can be removed. There is no such layer, or it is frozen, or others "
                "share its channels, as in a residual stream, which only C-SGD can merge (streams=True). Expected "
                f"some of {', '.join(groups)}."
            )
        chosen |= matching
    return chosen


def named(name: str, part: str) -> bool:
    """Whether a dotted name has a part between dots."""
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
        if isinstance(module, RepMLPBlock):  # each output channel depends only on the same input channel
            module.perceive_tiles = lambda x: x
        elif isinstance(module, PixelConv):
            module.forward = super(PixelConv, module).forward
        elif isinstance(module, nn.Linear):
            module.forward = lambda x, module=module: Multiplication.apply(x, module.weight, module.bias)
        elif hasattr(module, "inplace"):  # autograd would lose the inputs
            module.inplace = False
    images = torch.randn(1, image_channels(model), *image_size(model), device=next(model.parameters()).device)
    try:
        graph = DependencyGraph().build_dependency(model, images, forward_fn=call_all, verbose=False)
    except Exception as error:  # torch-pruning raises any on models that it does not support
        raise CompressionError(
            f"{type(model).__name__} cannot be traced on random images: {type(error).__name__}: {error}"
        ) from error
    names = {module: name for name, module in model.named_modules()}
    for name, module in model.named_modules():
        if isinstance(module, ReparameterizableConv2d):
            names[module.reparam] = name
    return graph, names


class Multiplication(torch.autograd.Function):
    """A linear layer as one operation: torch splits it if inputs have more than two dimensions."""

    @staticmethod
    def forward(ctx: object, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)


def plain_copy(model: nn.Module) -> nn.Module:
    """Copy a model without compactors, with re-parameterizable convolutions in deploy form, in eval mode."""
    model = copy.deepcopy(model).float()
    model.eval()
    remove_compactors(model)
    for module in model.modules():
        if isinstance(module, ReparameterizableConv2d):
            module.switch_to_deploy()
    return model


def call(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the outputs of a model's heads or, if these need more than images, the feature maps of backbone and
    neck."""
    outputs = None
    if "mode" in inspect.signature(model.forward).parameters:
        with suppress(Exception):  # heads may need more than images
            outputs = model(images, mode="tensor")
        outputs = model.extract_feat(images) if outputs is None else outputs
    else:
        outputs = model(images)
    return [MARK(output) for output in differentiable(outputs)]


def differentiable(outputs: object) -> list[Tensor]:
    """Return the tensors among outputs that depend on weights."""
    return [output for output in tree_leaves(outputs) if isinstance(output, Tensor) and output.requires_grad]


def call_all(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the result of :func:`call`, and what else is computed from images: outputs of layers that nothing reads,
    feature maps that no head reads, and outputs of heads for training only."""
    called: dict[nn.Module, object] = {}
    for module in model.modules():
        module.register_forward_hook(lambda module, _, output: called.update({module: output}))
    if hasattr(model, "backbone"):  # earlier outputs are those of a call that failed
        model.backbone.register_forward_pre_hook(lambda *_: called.clear())
    outputs = call(model, images)
    outputs += differentiable([output for module, output in called.items() if isinstance(module, LAYERS)])
    maps = [called[part] for part in (getattr(model, name, None) for name in ("backbone", "neck")) if part in called]
    children = [part for child in model.children() for part in (child if isinstance(child, nn.ModuleList) else [child])]
    for head in children if maps else ():
        layers = [layer for layer in head.modules() if isinstance(layer, LAYERS)]
        if layers and called.keys().isdisjoint(layers):
            for layer in layers:  # their own channels stay
                layer.register_forward_hook(lambda _, inputs, output: MARK(output))
            try:
                outputs += differentiable(head(maps[-1]))
            except Exception:  # it needs more than feature maps, all of which stay
                outputs += [MARK(feature) for feature in differentiable(maps[-1])]
    return outputs + differentiable(maps)


def group_of(graph: object, names: dict[nn.Module, str], writer: nn.Module) -> ChannelGroup | None:
    """Return the group of the channels that a layer computes; None if something needs each of them."""
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
            continue  # its effect on channels shows in the indices of the readers
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
    removable &= all(norm.affine for norm in norms.values())  # norms without a scale make no zeros
    order = {name: index for index, name in enumerate(names.values())}
    writers, norms = (tuple(sorted(layers, key=order.get)) for layers in (writers, norms))
    return ChannelGroup(writers, norms, tuple(behind), len(every), behind, removable)


def is_per_channel(operation: torch.autograd.graph.Node, channels: int) -> bool:
    """Whether an operation computes each channel only from the same channel of the layers' outputs."""
    name = operation.name()
    if name.startswith("Mean"):  # over any dimension but the channels
        sizes = operation._saved_self_sym_sizes
        means = [dim % 2**64 for dim in getattr(operation, "_saved_dim", range(len(sizes)))]  # torch stores -1 unsigned
        return any(size == channels and not {i, i - len(sizes) + 2**64} & {*means} for i, size in enumerate(sizes))
    if name.startswith("Mul") and any(function is None for function, _ in operation.next_functions):
        factors = (operation._saved_self, operation._saved_other)  # a constant, which stays as wide as it is
        return all(factor is None or not factor.dim() for factor in factors)
    return name.startswith(PER_CHANNEL)


def what_follows(graph: object, names: dict[nn.Module, str], layer: nn.Module) -> Behind:
    """Return the batch norm and the activation after a layer, if nothing else reads what is before them."""
    following = graph.module2node[layer].outputs  # one for each call; heads are called once for each level
    norms = {node.module for node in following}
    norm = norms.pop() if len(norms) == 1 else None
    if isinstance(norm, _BatchNorm):
        following = graph.module2node[norm].outputs
    else:
        norm = None
    kinds = {node.grad_fn and node.grad_fn.name().partition("Backward")[0] for node in following}
    activation = ACTIVATIONS.get(kinds.pop()) if len(kinds) == 1 else None
    return Behind(norm and names[norm], activation or nn.Identity())

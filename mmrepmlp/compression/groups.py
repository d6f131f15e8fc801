# SPDX-License-Identifier: Apache-2.0
"""Which channels of a model can be removed without a trace: what computes them, and what reads them."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from mmrepmlp.compression.compactor import remove_compactors
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.models import image_channels, image_size
from mmrepmlp.models.repmlpnet.block import PixelConv, RepMLPBlock

LAYERS = (nn.Conv2d, nn.Linear)
# What autograd calls operations that make a zero of a zero. Behind any other, a removed channel would leave a constant.
KEEP_ZEROS = ("Relu", "Gelu", "LeakyRelu", "Silu", "Hardswish", "Mish", "Elu", "Tanh", "MaxPool", "AvgPool")
KEEP_ZEROS += ("AdaptiveAvgPool", "Mean", "Upsample", "Clone", "NativeDropout")
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
    """Channels inside of a model, from the layer that computes them to the layers that read them.

    Attributes:
        writer: Name of the convolution or linear layer whose filters compute the channels.
        norm: Name of the batch norm behind it; None if there is none.
        readers: Names of the layers that read these channels and no others.
        channels: How many there are.
        behind: What follows each reader, by its name.
    """

    writer: str
    norm: str | None
    readers: tuple[str, ...]
    channels: int
    behind: Mapping[str, Behind]


def find_groups(model: nn.Module, layers: Sequence[str] | None = None) -> dict[str, ChannelGroup]:
    """Find the channels that can be removed without a trace, by the names of the layers that compute them.

    These are internal ones: computed by one convolution or linear layer that is trained, with at most a batch norm
    behind it, and read by other layers through activations that map zero to zero. Channels of residual streams and
    outputs of the model stay as they are. The model is traced by torch-pruning, ``pip install mmrepmlp[prune]``.

    Args:
        model: A model of any framework, or a bare backbone, in training form.
        layers: Names of the layers whose filters may be removed, or parts of the names from dot to dot. Default: all
            that can.

    Raises:
        CompressionError: Filters of the model, or of a layer that is named, cannot be removed.
        ImportError: torch-pruning is not installed.
    """
    graph, names = trace(model)
    found = {}
    for module, name in names.items():
        if (
            isinstance(module, LAYERS)
            and module in graph.module2node
            and model.get_submodule(name).weight.requires_grad
        ):
            group = internal_group(graph, names, module)
            if group is not None:
                found[name] = group
    if not found:
        raise CompressionError(
            f"{type(model).__name__} has no layer whose filters can be removed: none is inside of a block, trained and "
            "followed by an activation that maps zero to zero."
        )
    return found if layers is None else select(found, layers)


def select(groups: dict[str, ChannelGroup], layers: Sequence[str]) -> dict[str, ChannelGroup]:
    """The groups of layers that are given by their names, or by parts of them."""
    chosen = {}
    for layer in layers:
        matching = {name: group for name, group in groups.items() if named(name, layer)}
        if not matching:
            raise CompressionError(
                f"layers: no filter of {layer!r} can be removed. There is no such layer, or it is frozen, or others "
                f"share its channels, as in a residual stream. Expected some of {', '.join(groups)}."
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

    like = next(model.parameters())
    model = copy.deepcopy(model).float()
    remove_compactors(model)
    model.eval()
    model.requires_grad_(True)  # frozen layers would be missing in the graph
    for module in model.modules():
        if isinstance(module, RepMLPBlock):  # what is behind each channel of a map is the same channel
            module.perceive_tiles = lambda x: x
        elif isinstance(module, PixelConv):
            module.forward = super(PixelConv, module).forward
        elif hasattr(module, "inplace"):  # whose inputs autograd would lose
            module.inplace = False
    images = torch.randn(1, image_channels(model), *image_size(model), device=like.device)
    graph = DependencyGraph().build_dependency(model, images, forward_fn=call, verbose=False)
    return graph, {module: name for name, module in model.named_modules()}


def call(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The outputs of a model's heads; where they need more than images, the feature maps of its backbone and neck."""
    outputs = None
    if "mode" in inspect.signature(model.forward).parameters:
        with suppress(Exception):  # of whatever heads need besides images
            outputs = model(images, mode="tensor")
        outputs = model.extract_feat(images) if outputs is None else outputs
    else:
        outputs = model(images)
    # An operation of its own marks an output, which other layers may read as well.
    return [output * 1 for output in tree_leaves(outputs) if isinstance(output, Tensor) and output.requires_grad]


def internal_group(graph: object, names: dict[nn.Module, str], writer: nn.Module) -> ChannelGroup | None:
    """The group of the channels that a layer computes; None where they cannot be removed without a trace."""
    import torch_pruning
    from torch_pruning.ops import OPTYPE

    if getattr(writer, "groups", 1) > 1:
        return None
    convolution = isinstance(writer, nn.Conv2d)
    prune = torch_pruning.prune_conv_out_channels if convolution else torch_pruning.prune_linear_out_channels
    every, norms, readers = list(range(len(writer.weight))), [], []
    for dependency, indices in graph.get_pruning_group(writer, prune, every):
        target = dependency.target
        if target.module is writer and not graph.is_in_channel_pruning_fn(dependency.handler):
            continue
        if target.type == OPTYPE.ELEMENTWISE:
            if not target.grad_fn.name().startswith(KEEP_ZEROS):
                return None
        elif target.type == OPTYPE.RESHAPE:
            continue  # what it does to channels shows in the indices of those that read them
        elif isinstance(target.module, _BatchNorm) and len(target.module.running_var) == len(every):
            norms.append(names[target.module])
        elif isinstance(target.module, LAYERS) and graph.is_in_channel_pruning_fn(dependency.handler):
            if getattr(target.module, "groups", 1) > 1 or list(indices) != every:
                return None
            if target.module.weight.size(1) != len(every):
                return None
            readers.append(target.module)
        else:
            return None
    if not readers or len(norms) > 1:
        return None
    behind = {names[reader]: what_follows(graph, names, reader) for reader in readers}
    return ChannelGroup(names[writer], norms[0] if norms else None, tuple(sorted(behind)), len(every), behind)


def what_follows(graph: object, names: dict[nn.Module, str], layer: nn.Module) -> Behind:
    """The batch norm and the activation behind a layer, as far as nothing else reads what is before them."""
    following = graph.module2node[layer].outputs
    norm = following[0].module if len(following) == 1 else None
    if isinstance(norm, _BatchNorm):
        following = graph.module2node[norm].outputs
    else:
        norm = None
    kind = following[0].grad_fn.name().partition("Backward")[0] if len(following) == 1 else ""
    return Behind(norm and names[norm], ACTIVATIONS.get(kind, nn.Identity()))

# SPDX-License-Identifier: Apache-2.0
"""Make a trained model narrower: combine filters, then remove them."""

from collections.abc import Mapping, Sequence

import torch
from mmengine.registry import MODELS as ROOT
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmrepmlp.compression.compactor import VANISHED, Compactor, remove_compactor
from mmrepmlp.compression.groups import ChannelGroup, CompressionError
from mmrepmlp.models.convs import ReparameterizableConv2d
from mmrepmlp.registry import MODELS
from mmrepmlp.reparam import affine, fuse_after
from mmrepmlp.reparam.fuse import to_float64


def plain_layer(model: nn.Module, name: str) -> nn.Module:
    """Return a layer of a model; a re-parameterizable convolution is converted, and its fused convolution returned."""
    layer = model.get_submodule(name)
    if not isinstance(layer, ReparameterizableConv2d):
        return layer
    layer.switch_to_deploy()
    return layer.reparam


def layers_with_rows(model: nn.Module, group: ChannelGroup) -> list[nn.Module]:
    """Return the layers with a row of parameters for each channel of a group, those of branches included."""
    return [part for name in (*group.writers, *group.norms) for part in branches_of(model.get_submodule(name))]


def branches_of(layer: nn.Module) -> list[nn.Module]:
    """Return the layers of a re-parameterizable convolution with a row for each channel; any other layer itself."""
    return layer.output_layers() if isinstance(layer, ReparameterizableConv2d) else [layer]


@torch.no_grad()
def keep_filters(model: nn.Module, group: ChannelGroup, kept: Sequence[int]) -> None:
    """Keep some filters of a group of channels and remove the others, in place.

    This is exact if the channels of the others are zero for any image.

    Args:
        model: The model that the group was found in.
        group: The channels.
        kept: Indices of the filters to keep, in their order.
    """
    index = torch.tensor(kept, device=next(model.parameters()).device)
    for name in (*group.writers, *group.norms):
        narrow(plain_layer(model, name), outputs=index)
    for name in group.readers:
        narrow(plain_layer(model, name), inputs=index)


@torch.no_grad()
def zero_filters(model: nn.Module, group: ChannelGroup, kept: Sequence[int]) -> None:
    """Set all filters of a removable group to zero, except for some, in place."""
    gone = sorted(set(range(group.channels)) - set(kept))
    for layer in branches_of(model.get_submodule(group.last)):
        for parameter in layer.parameters(recurse=False):
            parameter[gone] = 0


@torch.no_grad()
def equalize(model: nn.Module, group: ChannelGroup, clusters: Sequence[int]) -> None:
    """Make all filters of a cluster equal to its first, in place.

    Args:
        model: The model that the group was found in.
        group: The channels.
        clusters: Number of the cluster of each filter.
    """
    first = [clusters.index(number) for number in clusters]
    for layer in layers_with_rows(model, group):
        for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)):
            if tensor.dim():
                tensor.copy_(tensor[first])


@torch.no_grad()
def merge_clusters(model: nn.Module, group: ChannelGroup, clusters: Sequence[int]) -> None:
    """Keep the first filter of each cluster, and add up the weights of the cluster in the layers that read it, in
    place.

    This is exact if the filters of a cluster are equal.

    Args:
        model: The model that the group was found in.
        group: The channels.
        clusters: Number of the cluster of each filter. The kept filters are in the order of these numbers.
    """
    first = [clusters.index(number) for number in clusters]
    for reader in [plain_layer(model, name) for name in group.readers]:
        weight = to_float64(reader.weight)
        index = torch.tensor(first, device=weight.device)
        reader.weight.copy_(torch.zeros_like(weight).index_add_(1, index, weight))
    keep_filters(model, group, [clusters.index(number) for number in range(max(clusters) + 1)])


def remaining_rows(compactor: Compactor) -> list[int]:
    """Return the rows of a compactor that have not vanished, and in any case the largest one."""
    norms = compactor.norms()
    return sorted({norms.argmax().item(), *(norms >= VANISHED).nonzero().flatten().tolist()})


@torch.no_grad()
def vanish(model: nn.Module, group: ChannelGroup) -> None:
    """Set the rows of a group's compactor that have nearly vanished to zero, in place."""
    compactor = model.get_submodule(group.last).compactor
    gone = sorted(set(range(group.channels)) - set(remaining_rows(compactor)))
    compactor.weight[gone] = 0


@torch.no_grad()
def fuse_compactor(model: nn.Module, group: ChannelGroup) -> None:
    """Fuse the compactor of a group into the layer before it, and remove the filters that have vanished, in place.

    A batch norm in between then only adds a shift.
    """
    writer, last = plain_layer(model, group.writer), model.get_submodule(group.last)
    kept, fused = remaining_rows(last.compactor), affine(writer)
    if group.norms:
        fused = fuse_after(fused, affine(last))
        make_shift(last, fused.bias)
        if writer.bias is not None:
            writer.bias.zero_()
    elif writer.bias is None:
        raise CompressionError(f"{group.writer} has neither a norm nor a bias for the compactor after it.")
    else:
        writer.bias.copy_(fused.bias)
    remove_compactor(last)
    writer.weight.copy_(fused.weight)
    keep_filters(model, group, kept)


def make_shift(norm: _BatchNorm, shift: Tensor) -> None:
    """Make a norm add a shift and nothing else in eval mode; it can be trained as before."""
    norm.running_mean.zero_()
    norm.running_var.fill_(1)
    norm.weight.fill_((1 + norm.eps) ** 0.5)
    norm.bias.copy_(shift)


def narrow(layer: nn.Module, outputs: Tensor | None = None, inputs: Tensor | None = None) -> None:
    """Keep some outputs and inputs of a layer, or channels of a norm, in place; ``requires_grad`` does not change."""
    for name, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        values = tensor.detach()
        if values.dim() and outputs is not None:
            values = values[outputs]
        if values.dim() > 1 and inputs is not None:
            values = values[:, inputs]
        values = values.clone()
        setattr(layer, name, nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values)
    for sizes, names in (
        (outputs, ("out_channels", "out_features", "num_features")),
        (inputs, ("in_channels", "in_features")),
    ):
        for name in names if sizes is not None else ():
            if hasattr(layer, name):
                setattr(layer, name, len(sizes))


def width_of(layer: nn.Module) -> list[int]:
    """Return the numbers of outputs and inputs of a layer, or the number of channels of a norm."""
    if isinstance(layer, _BatchNorm):
        return [layer.num_features]
    return list(layer.weight.shape[:2])


def changed_widths(model: nn.Module, groups: Mapping[str, ChannelGroup]) -> dict[str, list[int]]:
    """Return the widths of all layers that belong to groups, by name, as :func:`PrunedModel` takes them."""
    names = {name for group in groups.values() for name in (*group.writers, *group.norms, *group.readers)}
    return {name: width_of(plain_layer(model, name)) for name in sorted(names)}


@MODELS.register_module()
def PrunedModel(model: dict, widths: dict[str, Sequence[int]], **settings: object) -> nn.Module:
    """Build a model with narrower layers, as the configs of compressed models do.

    Args:
        model: Config of the model at its original widths, looked up in the current default scope. Its parts may be
            arguments here instead, where frameworks look for them.
        widths: Numbers of outputs and inputs of each narrower layer, and number of channels of each narrower batch
            norm, by name. A norm that is fused in the deploy form is skipped, and a re-parameterizable convolution is
            built in deploy form.
        **settings: Further arguments of the model, where its config does not set them.

    Returns:
        The model.

    Raises:
        CompressionError: A layer does not exist, or is not wide enough.
    """
    network = ROOT.build({**settings, **model})
    modules = dict(network.named_modules())
    for name, sizes in widths.items():
        if isinstance(modules.get(name), nn.Identity):
            continue
        layer = plain_layer(network, name) if name in modules else None
        if not hasattr(layer, "weight"):
            raise CompressionError(f"widths: the model has no layer {name!r}.")
        present = width_of(layer)
        if len(sizes) != len(present) or any(not 0 < size <= now for size, now in zip(sizes, present)):
            raise CompressionError(f"widths: {name} has {present} channels and cannot be narrowed to {list(sizes)}.")
        narrow(layer, *(torch.arange(size, device=layer.weight.device) for size in sizes))
    return network

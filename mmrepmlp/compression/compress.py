# SPDX-License-Identifier: Apache-2.0
"""Find and remove the channels that training with compression has made removable."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from mmrepmlp.compression.compactor import compactors_in
from mmrepmlp.compression.groups import ChannelGroup, CompressionError, find_groups
from mmrepmlp.compression.reduce import equalize, fuse_compactor, keep_filters, merge_clusters, vanish, zero_filters


@dataclass
class Reduction:
    """The reduction of a group of channels.

    Attributes:
        group: The channels.
        finish: Applies the threshold of the method: filters that have nearly vanished become zero, filters that are
            nearly equal become equal. In place.
        remove: Removes the channels, in place; exact after :attr:`finish`.
    """

    group: ChannelGroup
    finish: Callable[[nn.Module], object]
    remove: Callable[[nn.Module], object]


@dataclass
class Compressed:
    """A model before and after its compression.

    Attributes:
        finished: The model at its original widths, in which removable filters are exactly zero or equal.
        model: The narrower model, which computes the same as ``finished``.
        groups: The groups of channels that became narrower, as they were before, by name.
    """

    finished: nn.Module
    model: nn.Module
    groups: dict[str, ChannelGroup] = field(default_factory=dict)


def find_reductions(model: nn.Module, state: Mapping[str, dict]) -> list[Reduction]:
    """Find the channels that training with compression has made removable.

    Args:
        model: The trained model, perhaps with compactors.
        state: The states of the hooks, under ``compression`` in the checkpoint.

    Raises:
        CompressionError: The states do not belong to the model.
    """
    compactors, clusters = compactors_in(model), state.get("CSGDHook", {}).get("clusters", {})
    masks = state.get("AOFPHook", {}).get("masks", {})
    if not (compactors or clusters or masks):
        return []
    groups = find_groups(model, streams=True)
    for name in [*clusters, *masks]:
        kept = clusters.get(name, masks.get(name))
        if name not in groups or groups[name].channels != len(kept):
            raise CompressionError(f"The checkpoint was compressed in a layer {name} that the model does not have.")
    reductions = [
        Reduction(group, partial(vanish, group=group), partial(fuse_compactor, group=group))
        for group in groups.values()
        if group.removable and group.last in compactors
    ]
    for name, numbers in clusters.items():
        settings = dict(group=groups[name], clusters=list(numbers))
        reductions.append(Reduction(groups[name], partial(equalize, **settings), partial(merge_clusters, **settings)))
    for name, mask in masks.items():
        settings = dict(group=groups[name], kept=[i for i, value in enumerate(mask) if value])
        reductions.append(Reduction(groups[name], partial(zero_filters, **settings), partial(keep_filters, **settings)))
    return reductions


def compress(model: nn.Module, state: Mapping[str, dict]) -> Compressed | None:
    """Remove the channels that training with compression has made removable.

    Args:
        model: The trained model; it is not changed.
        state: The states of the hooks, under ``compression`` in the checkpoint.

    Returns:
        The model before and after; None if there is nothing to remove.

    Raises:
        CompressionError: The states do not belong to the model.
    """
    reductions = find_reductions(model, state)
    if not reductions:
        return None
    finished = copy.deepcopy(model)
    for reduction in reductions:
        reduction.finish(finished)
    narrower = copy.deepcopy(finished)
    for reduction in reductions:
        reduction.remove(narrower)
    return Compressed(finished, narrower, {reduction.group.writer: reduction.group for reduction in reductions})

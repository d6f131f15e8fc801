# SPDX-License-Identifier: Apache-2.0
"""Checks of a config before anything is built."""

import os.path as osp
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config, ConfigDict

from mmrepmlp.engine.hooks.check_annotations_hook import HEADS
from mmrepmlp.models.backbones.arch import resolve_arch, resolve_indices


def check_config(cfg: Config, *splits: str) -> None:
    """Check that the parts of a model fit together and that the data sets exist.

    Args:
        cfg: A config of mmpretrain, mmsegmentation or mmdetection.
        *splits: Splits whose data will be read: ``train``, ``val``, ``test``.

    Raises:
        ValueError: A neck or head does not fit the feature maps of a RepMLPNet backbone.
        FileNotFoundError: A folder or an annotation file of a data set does not exist.
    """
    check_channels(cfg.model)
    for split in splits:
        loader = cfg.get(f"{split}_dataloader")
        if loader and "dataset" in loader:
            check_files(loader.dataset, f"{split}_dataloader.dataset")


def check_channels(model: ConfigDict) -> None:
    """Check that the neck or heads after a RepMLPNet backbone match its feature maps.

    Raises:
        ValueError: The number of maps or channels differs; the message says what to set.
    """
    backbone = model.get("backbone", {})
    if backbone.get("type") != "mmrepmlp.RepMLPNet":
        return
    channels = resolve_arch(backbone.arch)["channels"]
    maps = [channels[i] for i in resolve_indices(backbone.get("out_indices", (-1,)), len(channels))]
    neck = as_list(model.get("neck"))
    if neck and "in_channels" in neck[0]:
        check_inputs("model.neck", neck[0], maps, range(len(as_list(neck[0].in_channels))))
        return
    for name in HEADS:
        for head in as_list(model.get(name)):
            if "in_channels" in head:
                check_inputs(f"model.{name}", head, maps, as_list(head.get("in_index", -1)))


def check_inputs(name: str, part: ConfigDict, maps: list[int], indices: list[int] | range) -> None:
    """Compare the ``in_channels`` of a neck or head with the backbone's maps at ``indices``."""
    if any(not -len(maps) <= index < len(maps) for index in indices):
        raise ValueError(
            f"{name} takes map {max(indices)}, counted from 0, but the backbone gives only {len(maps)}. Set "
            "model.backbone.out_indices, e.g. to (0, 1, 2, 3)."
        )
    expected = [maps[index] for index in indices]
    if as_list(part.in_channels) != expected:
        correct = expected if isinstance(part.in_channels, (list, tuple)) else expected[0]
        raise ValueError(
            f"{name}.in_channels={part.in_channels} does not fit the backbone, whose maps have {maps} channels. Set "
            f"{name}.in_channels={correct}."
        )


def check_files(dataset: ConfigDict, name: str) -> None:
    """Check that the folders and files of a data set exist, inside wrappers as well.

    Raises:
        FileNotFoundError: One does not exist.
    """
    for inner in ("dataset", "datasets"):
        for part in as_list(dataset.get(inner)):
            check_files(part, f"{name}.{inner}")
    for setting, path in local_paths(dataset):
        if not Path(path).exists():
            raise FileNotFoundError(
                f"{path} does not exist; it is set by {name}.{setting}. Put the data there, or change "
                f"{name}.data_root; docs/datasets.md shows each layout and how to get the data."
            )


def local_paths(dataset: ConfigDict) -> Iterator[tuple[str, str]]:
    """Iterate over the settings of a data set that are local paths, with the paths, the root first."""
    root = dataset.get("data_root") or ""
    prefix = dataset.get("data_prefix") or {}
    prefixes = (
        {"data_prefix": prefix} if isinstance(prefix, str) else {f"data_prefix.{k}": v for k, v in prefix.items()}
    )
    for setting, path in {"data_root": "", **prefixes, "ann_file": dataset.get("ann_file") or ""}.items():
        path = osp.join(root, path or "").rstrip("/")
        if path and "://" not in path:
            yield setting, path


def as_list(value: object) -> list:
    """Convert to a list: None to an empty one, a single value to a list of one."""
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]

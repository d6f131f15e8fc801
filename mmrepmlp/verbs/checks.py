# SPDX-License-Identifier: Apache-2.0
"""Checks of a config before a run: that its data are there, and that the parts of its model fit together."""

import copy
import inspect
import os.path as osp
from collections.abc import Iterator, Mapping
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, DefaultScope

from mmrepmlp.verbs.config import as_list, resolve_type

from .fit import check_fit

# Packages whose data sets are known to read what data_root, data_prefix and ann_file name.
PACKAGES = ("mmpretrain", "mmseg", "mmdet", "mmrepmlp")
IMAGES = ("img", "img_path")
CLASS_MAPS = "seg_map_path"
# What a data set raises for other reasons than that it is empty, unless the message names the missing file.
OTHER_ERRORS = (AttributeError, ImportError, KeyError, TypeError, OSError)


def check_config(cfg: Config, *splits: str, training: bool = False) -> None:
    """Check that the parts of a model fit together and that the data sets exist.

    ``check_model=False`` in the config turns the first check off.

    Args:
        cfg: A config of mmpretrain, mmsegmentation or mmdetection.
        *splits: Splits whose data will be read: ``train``, ``val``, ``test``.
        training: Whether the model will be trained, with its auxiliary heads. Default: False.

    Raises:
        ValueError: A neck or head does not fit the feature maps of a backbone of this package.
        FileNotFoundError: A folder or an annotation file of a data set does not exist.
    """
    if cfg.get("check_model", True):
        check_fit(cfg, training)
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
        for split in splits:
            loader = cfg.get(f"{split}_dataloader")
            if isinstance(loader, Mapping):
                check_files(loader.get("dataset"), f"{split}_dataloader.dataset")


def check_files(dataset: object, name: str) -> None:
    """Check that the folders and files of a data set exist, inside wrappers as well.

    Where one seems to be missing, the data set itself has the last word: it may have it elsewhere, or do without.

    Args:
        dataset: Config of a data set; anything else passes.
        name: Its name in the whole config.

    Raises:
        FileNotFoundError: One does not exist, and without it the data set gives no sample.
    """
    try:
        error = find_missing(dataset, name)
    except Exception:  # what does not work is the run's own to raise
        return
    if error:
        raise error


def find_missing(dataset: object, name: str) -> FileNotFoundError | None:
    """What a data set lacks; None if nothing is known."""
    if not isinstance(dataset, Mapping):
        return None
    for inner in ("dataset", "datasets"):
        for part in as_list(dataset.get(inner)):
            if error := find_missing(part, f"{name}.{inner}"):
                return error
    if not reads_local_files(dataset):
        return None
    missing = [(setting, path) for setting, path in local_paths(dataset) if not Path(path).exists()]
    if not missing:
        return find_no_image(dataset, name)
    error = try_dataset(dataset)
    named = [(setting, path) for setting, path in missing if path in str(error)]
    if error is None or (isinstance(error, OTHER_ERRORS) and not named):
        return None
    setting, path = (named or missing)[0]
    root = (dataset.get("data_root") or "").rstrip("/")
    changed = "data_root" if root and path.startswith(root) else setting
    return FileNotFoundError(
        f"{path} does not exist; it is set by {name}.{setting}. Put the data there, or change {name}.{changed}; "
        "docs/datasets.md shows each layout and how to get the data."
    )


def find_no_image(dataset: ConfigDict, name: str) -> FileNotFoundError | None:
    """What a data set of mmsegmentation lacks that lists a folder, where no file in it has the ending of an image."""
    kind, folder = resolve_type(dataset, DATASETS), dict(local_paths(dataset)).get("data_prefix.img_path")
    settings = [inspect.signature(base.__init__).parameters for base in inspect.getmro(kind)[:-1]]
    suffix = dataset.get("img_suffix") or next((s["img_suffix"].default for s in settings if "img_suffix" in s), None)
    if not folder or not isinstance(suffix, str) or dataset.get("ann_file"):
        return None
    endings = set()
    for path in Path(folder).rglob("*"):
        if path.name.endswith(suffix):
            return None
        if path.is_file():
            endings.add(path.suffix)
    if not endings or try_dataset(dataset) is None:
        return None
    return FileNotFoundError(
        f"{folder} has no file that ends in {suffix!r}, but {', '.join(sorted(endings))}. Set {name}.img_suffix, and "
        f"{name}.seg_map_suffix for the masks."
    )


def try_dataset(dataset: ConfigDict) -> Exception | None:
    """The error that a data set raises when it is built and gives its first sample; None if it raises none."""
    try:
        DATASETS.build(copy.deepcopy(dataset))[0]
    except Exception as error:
        return error
    return None


def reads_local_files(dataset: ConfigDict) -> bool:
    """Whether a data set is known to need its files where its config says, and does not download them."""
    kind = resolve_type(dataset, DATASETS)
    if not inspect.isclass(kind) or kind.__module__.partition(".")[0] not in PACKAGES:
        return False
    backend = (dataset.get("backend_args") or {}).get("backend", "local")
    downloads = any("download" in inspect.signature(base.__init__).parameters for base in inspect.getmro(kind)[:-1])
    return backend in ("local", "disk") and not (downloads and dataset.get("download", True))


def local_paths(dataset: ConfigDict) -> Iterator[tuple[str, str]]:
    """Iterate over the settings of a data set that are local paths, with the paths, the root first."""
    root = dataset.get("data_root") or ""
    prefix = dataset.get("data_prefix") or {}
    prefixes = {"data_prefix": prefix} if isinstance(prefix, str) else {}
    if isinstance(prefix, Mapping):
        read = (*IMAGES, CLASS_MAPS) if loads_annotations(dataset) else IMAGES
        prefixes = {f"data_prefix.{key}": prefix[key] for key in read if key in prefix}
    for setting, path in {"data_root": "", **prefixes, "ann_file": dataset.get("ann_file") or ""}.items():
        if not isinstance(path or "", str) or not isinstance(root, str):
            continue
        path = osp.join(root, path or "").rstrip("/")
        if path and "://" not in path:
            yield setting, path


def loads_annotations(dataset: ConfigDict) -> bool:
    """Whether a data set's pipeline loads annotations; a test set may have none."""
    return any(
        isinstance(transform, Mapping) and "LoadAnnotations" in str(transform.get("type"))
        for transform in as_list(dataset.get("pipeline"))
    )

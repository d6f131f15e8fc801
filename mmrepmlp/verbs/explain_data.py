# SPDX-License-Identifier: Apache-2.0
"""Explain what is wrong with the data of a run that failed."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from os.path import expanduser, join
from pathlib import Path
from types import FrameType

from mmengine.config import Config
from mmengine.dataset import BaseDataset, Compose
from mmengine.evaluator import BaseMetric
from mmengine.runner import BaseLoop, TestLoop, ValLoop
from PIL import Image

from mmrepmlp.engine.hooks.annotation_files import iter_datasets

WORKER = "\nOriginal Traceback"  # where torch quotes what a data loader's worker raised
READER = "imfrombytes"  # the function of mmcv that decodes images


def first_line(error: BaseException) -> str:
    """The kind of an error, and the first line of its text."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def summarize(error: BaseException) -> str:
    """An error in one sentence; of one that a data loader's worker raised, that which it quotes."""
    text = str(error).strip().splitlines()[-1] if WORKER.strip() in str(error) else first_line(error)
    return text if text.endswith((".", "!", "?")) else f"{text}."


def advise_on_data(error: Exception, frames: list[FrameType], cfg: Config) -> tuple[str, dict] | None:
    """Name the setting of a file or folder that is not there, or say why a dataset is empty."""
    owners = [frame.f_locals.get("self") for frame in frames]
    loop = next((owner for owner in reversed(owners) if isinstance(owner, BaseLoop)), None)
    splits = [find_split(owners)] if loop else ["train", "val", "test"]
    paths = [path for split in splits for path in iter_paths(cfg, split)]
    if any(READER in text for text in (str(error), *(frame.f_code.co_name for frame in frames))):
        dataset = next((owner for owner in owners if isinstance(owner, BaseDataset)), None) or loop.dataloader.dataset
        return next(iter_unreadable(dataset)), {}
    function = frames[-1].f_code.co_name
    if function == "_find_samples" and isinstance(error, AssertionError):  # in which mmpretrain numbers folders
        return why_other_folders(owners[-1]), {}
    if function == "_serialize_data" and isinstance(owners[-1], BaseDataset):
        return why_empty(owners[-1], paths), {}
    named = [(setting, path) for setting, path in paths if is_in(path, summarize(error))]
    missing = [(setting, path) for setting, path in named if not Path(path).exists()]
    reading = isinstance(error, OSError) or any(frame.f_code.co_name == "load_data_list" for frame in frames)
    if not missing and not (named and reading):
        return None
    setting, path = missing[0] if missing else max(named, key=lambda found: len(found[1]))
    text = f"{path} does not exist; it is" if missing else f"The path begins with {path}, which is"
    return f"{text} set by {setting}. Put the data there, or change the setting; docs/datasets.md shows layouts.", {}


def find_split(owners: list) -> str:
    """Which of the splits a run was at."""
    loop = next((owner for owner in reversed(owners) if isinstance(owner, BaseLoop)), None)
    return "test" if isinstance(loop, TestLoop) else "val" if isinstance(loop, ValLoop) else "train"


def iter_unreadable(dataset: object) -> Iterator[str]:
    """Iterate over the images and masks that a dataset cannot read, each in a sentence.

    Frameworks do not name them, and a data loader's worker does not tell which sample failed: files that are empty or
    that Pillow cannot read are read once more.
    """
    for part in iter_datasets(dataset):
        read = Compose([step for step in part.pipeline.transforms if type(step).__name__.startswith("Load")])
        for info in (part.get_data_info(index) for index in range(len(part))):
            for key in ("img_path", "seg_map_path"):
                path = info.get(key)
                if isinstance(path, str) and not (works(open_image, path, key) or works(read, info)):
                    kind = "is empty" if Path(path).exists() and not Path(path).stat().st_size else "is damaged"
                    yield f"{path} {kind}. Replace the file, or remove it with its annotation."


def open_image(path: str, key: str) -> None:
    """Open an image with Pillow, and decode it if it is a mask, which the frameworks read with Pillow as well."""
    with Image.open(path) as image:
        if key == "seg_map_path":
            image.load()


def works(operation: Callable, *arguments: object) -> bool:
    """Whether an operation ends without an error."""
    with suppress(Exception):
        operation(*arguments)
        return True
    return False


def why_other_folders(dataset: BaseDataset) -> str:
    """Which folders make a dataset of other classes than its config names."""
    names, folders = list(dataset.metainfo["classes"]), list(dataset.folder_to_idx)
    extra, missing = ([name for name in a if name not in b] for a, b in ((folders, names), (names, folders)))
    return f"Folders without a class: {extra}; classes without a folder: {missing}. Correct these or metainfo.classes."


def iter_paths(cfg: Config, split: str) -> Iterator[tuple[str, str]]:
    """Iterate over the settings of a split's data that are paths, each with its path."""
    for name, evaluator in named_parts(f"{split}_evaluator", cfg.get(f"{split}_evaluator")):
        if isinstance(evaluator, Mapping) and isinstance(evaluator.get("ann_file"), str):
            yield f"{name}.ann_file", evaluator["ann_file"]
    datasets = named_parts(f"{split}_dataloader.dataset", (cfg.get(f"{split}_dataloader") or {}).get("dataset"))
    for name, dataset in datasets:  # which grow
        if isinstance(dataset, Mapping):
            yield from ((f"{name}.{setting}", path) for setting, path in local_paths(dataset))
            for key in ("dataset", "datasets"):
                datasets += named_parts(f"{name}.{key}", dataset.get(key))


def named_parts(name: str, value: object) -> list[tuple[str, object]]:
    """The parts of a setting, each with its dotted name: the items of a list, or the value itself."""
    return [(f"{name}.{i}", part) for i, part in enumerate(value)] if isinstance(value, list) else [(name, value)]


def local_paths(dataset: Mapping) -> Iterator[tuple[str, str]]:
    """Iterate over the settings of a dataset that are local paths, with the paths, the root first."""
    root, prefix = dataset.get("data_root") or "", dataset.get("data_prefix") or {}
    prefixes = {f"data_prefix.{key}": part for key, part in prefix.items()} if isinstance(prefix, Mapping) else {}
    settings = {"data_root": "", "data_prefix": prefix, **prefixes, "ann_file": dataset.get("ann_file")}
    for setting, path in settings.items():
        path = expanduser(join(root, path)).rstrip("/") if isinstance(path, str) else ""
        if path and "://" not in path and (path != root.rstrip("/") or setting == "data_root"):
            yield setting, path


def is_in(path: str, text: str) -> bool:
    """Whether a text names a path, or something in it."""
    return re.search(rf"(?<![\w/.-]){re.escape(path)}(?![\w-]|\.\w)", text) is not None


def why_empty(dataset: BaseDataset, paths: list[tuple[str, str]]) -> str:
    """Why a dataset has no sample, as far as what it read tells."""
    folder, suffix = dataset.data_prefix.get("img_path"), getattr(dataset, "img_suffix", None)
    if suffix and folder and not Path(dataset.ann_file).is_file():
        found = sorted({path.suffix for path in Path(folder).rglob("*") if path.is_file()})
        owner = next((name.partition(".data_prefix")[0] for name, path in paths if path == folder), "the dataset")
        text = f"{folder} has no file that ends in {suffix!r}, but {', '.join(found) or 'none at all'}."
        return f"{text} Set {owner}.img_suffix, and {owner}.seg_map_suffix for the masks."
    if getattr(dataset, "cat_ids", None) == []:
        classes = dataset.metainfo["classes"]
        return f"None of the categories in {dataset.ann_file} is in metainfo.classes={classes}. Correct the names."
    where = f"ann_file={dataset.ann_file!r} and data_prefix={dataset.data_prefix}"
    return f"{type(dataset).__name__} is empty. Check {where}, and its filter_cfg."


def advise_on_labels(error: Exception, frames: list[FrameType], cfg: Config) -> tuple[str, dict] | None:
    """Say that a metric needs labels that the samples do not have."""
    metric = frames[-1].f_locals["self"]
    if not isinstance(metric, BaseMetric) or not isinstance(error, KeyError) or frames[-1].f_code.co_name != "process":
        return None
    text = f"{type(metric).__name__} compares with labels, which the samples do not have. Load them in the pipeline"
    writes = "format_only" in inspect.signature(type(metric)).parameters
    return f"{text}{', or set format_only=True and output_dir to write predictions alone' if writes else ''}.", {}

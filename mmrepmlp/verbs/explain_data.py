# SPDX-License-Identifier: Apache-2.0
"""Explain errors in the data of a run that failed."""

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

WORKER = "\nOriginal Traceback"  # precedes torch's quote of an error in a data loader worker
READER = "imfrombytes"  # the function of mmcv that decodes images


def first_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def summarize(error: BaseException) -> str:
    """Summarize an error in one sentence; if it was raised in a data loader worker, summarize the original error."""
    text = str(error).strip().splitlines()[-1] if WORKER.strip() in str(error) else first_line(error)
    return text if text.endswith((".", "!", "?")) else f"{text}."


def advise_on_data(error: Exception, frames: list[FrameType], cfg: Config) -> tuple[str, dict] | None:
    """Name the setting of a missing file or folder, or explain why a dataset is empty or unreadable."""
    owners = [frame.f_locals.get("self") for frame in frames]
    loop = next((owner for owner in reversed(owners) if isinstance(owner, BaseLoop)), None)
    splits = [find_split(owners)] if loop else ["train", "val", "test"]
    paths = [path for split in splits for path in iter_paths(cfg, split)]
    if any(READER in text for text in (str(error), *(frame.f_code.co_name for frame in frames))):
        dataset = next((owner for owner in owners if isinstance(owner, BaseDataset)), None) or loop.dataloader.dataset
        return next(iter_unreadable(dataset)), {}
    function = frames[-1].f_code.co_name
    if function == "_find_samples" and isinstance(error, AssertionError):  # mmpretrain numbers class folders there
        return explain_class_folders(owners[-1]), {}
    if function == "_serialize_data" and isinstance(owners[-1], BaseDataset):
        return explain_empty_dataset(owners[-1], paths), {}
    named = [(setting, path) for setting, path in paths if is_in(path, summarize(error))]
    missing = [(setting, path) for setting, path in named if not Path(path).exists()]
    reading = isinstance(error, OSError) or any(frame.f_code.co_name == "load_data_list" for frame in frames)
    if not missing and not (named and reading):
        return None
    setting, path = missing[0] if missing else max(named, key=lambda found: len(found[1]))
    text = f"{path} does not exist; it is" if missing else f"The path begins with {path}, which is"
    return f"{text} set by {setting}. Put the data there, or change the setting; docs/datasets.md shows layouts.", {}


def find_split(owners: list) -> str:
    """Return the split that a run was processing: train, val or test."""
    loop = next((owner for owner in reversed(owners) if isinstance(owner, BaseLoop)), None)
    return "test" if isinstance(loop, TestLoop) else "val" if isinstance(loop, ValLoop) else "train"


def iter_unreadable(dataset: object) -> Iterator[str]:
    """Iterate over sentences, one for each image or mask that a dataset cannot read.

    Frameworks do not name the file, and a data loader worker does not tell which sample failed. Files that Pillow
    cannot read are read again as the dataset does it, since that may succeed.
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
    """Open an image with Pillow, and decode it if it is a mask, since the frameworks read masks with Pillow too."""
    with Image.open(path) as image:
        if key == "seg_map_path":
            image.load()


def works(operation: Callable, *arguments: object) -> bool:
    """Whether an operation completes without an error."""
    with suppress(Exception):
        operation(*arguments)
        return True
    return False


def explain_class_folders(dataset: BaseDataset) -> str:
    """Name the folders that do not match the classes of a dataset."""
    names, folders = list(dataset.metainfo["classes"]), list(dataset.folder_to_idx)
    extra, missing = ([name for name in a if name not in b] for a, b in ((folders, names), (names, folders)))
    return f"Folders without a class: {extra}; classes without a folder: {missing}. Rename them, or metainfo.classes."


def iter_paths(cfg: Config, split: str) -> Iterator[tuple[str, str]]:
    """Iterate over the names and values of the settings of a split that are paths."""
    for name, evaluator in named_parts(f"{split}_evaluator", cfg.get(f"{split}_evaluator")):
        if isinstance(evaluator, Mapping) and isinstance(evaluator.get("ann_file"), str):
            yield f"{name}.ann_file", evaluator["ann_file"]
    datasets = named_parts(f"{split}_dataloader.dataset", (cfg.get(f"{split}_dataloader") or {}).get("dataset"))
    for name, dataset in datasets:  # grows in the loop
        if isinstance(dataset, Mapping):
            yield from ((f"{name}.{setting}", path) for setting, path in local_paths(dataset))
            for key in ("dataset", "datasets"):
                datasets += named_parts(f"{name}.{key}", dataset.get(key))


def named_parts(name: str, value: object) -> list[tuple[str, object]]:
    """Return the items of a list, or a single value, each with its dotted name."""
    return [(f"{name}.{i}", part) for i, part in enumerate(value)] if isinstance(value, list) else [(name, value)]


def local_paths(dataset: Mapping) -> Iterator[tuple[str, str]]:
    """Iterate over the names and values of the settings of a dataset that are local paths, the root first."""
    root, prefix = dataset.get("data_root") or "", dataset.get("data_prefix") or {}
    prefixes = {f"data_prefix.{key}": part for key, part in prefix.items()} if isinstance(prefix, Mapping) else {}
    settings = {"data_root": "", "data_prefix": prefix, **prefixes, "ann_file": dataset.get("ann_file")}
    for setting, path in settings.items():
        path = expanduser(join(root, path)).rstrip("/") if isinstance(path, str) else ""
        if path and "://" not in path and (path != root.rstrip("/") or setting == "data_root"):
            yield setting, path


def is_in(path: str, text: str) -> bool:
    """Whether a text mentions a path, or something in it."""
    return re.search(rf"(?<![\w/.-]){re.escape(path)}(?![\w-]|\.\w)", text) is not None


def explain_empty_dataset(dataset: BaseDataset, paths: list[tuple[str, str]]) -> str:
    """Explain why a dataset has no samples, as far as its settings and files tell."""
    folder, suffix = dataset.data_prefix.get("img_path"), getattr(dataset, "img_suffix", None)
    if suffix and folder and not Path(dataset.ann_file).is_file():
        found = sorted({path.suffix for path in Path(folder).rglob("*") if path.is_file()})
        owner = next((name.partition(".data_prefix")[0] for name, path in paths if path == folder), "the dataset")
        text = f"{folder} has no file that ends in {suffix!r}; found: {', '.join(found) or 'no files'}."
        return f"{text} Set {owner}.img_suffix, and {owner}.seg_map_suffix for the masks."
    if getattr(dataset, "cat_ids", None) == []:
        classes = dataset.metainfo["classes"]
        return f"None of the categories in {dataset.ann_file} is in metainfo.classes={classes}. Correct the names."
    settings = f"ann_file={dataset.ann_file!r}, data_prefix={dataset.data_prefix}"
    return f"{type(dataset).__name__} is empty. Check {settings} and filter_cfg."


def advise_on_labels(error: Exception, frames: list[FrameType], cfg: Config) -> tuple[str, dict] | None:
    """Explain that a metric needs labels that the samples do not have."""
    metric = frames[-1].f_locals["self"]
    if not isinstance(metric, BaseMetric) or not isinstance(error, KeyError) or frames[-1].f_code.co_name != "process":
        return None
    text = f"{type(metric).__name__} needs labels, which the samples do not have. Load them in the pipeline"
    writes = "format_only" in inspect.signature(type(metric)).parameters
    return f"{text}{', or set format_only=True and output_dir to only write predictions' if writes else ''}.", {}

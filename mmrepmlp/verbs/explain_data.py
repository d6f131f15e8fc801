# SPDX-License-Identifier: Apache-2.0
"""Explain what is wrong with the data of a run that failed."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from os.path import expanduser, join
from pathlib import Path
from types import FrameType

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.runner import BaseLoop, TestLoop, ValLoop
from PIL import Image

from mmrepmlp.engine.hooks.annotation_files import COUNTS_AS_CLASS, iter_datasets, list_images, names_in
from mmrepmlp.verbs.config import as_list

WORKER = "\nOriginal Traceback"  # where torch quotes what a data loader's worker raised
READER = "imfrombytes"  # the function of mmcv that decodes images


def summarize(error: BaseException) -> str:
    """An error in one sentence; of one that a data loader's worker raised, that which it quotes."""
    lines = str(error).strip().splitlines()
    quoted = WORKER.strip() in str(error)
    text = lines[-1] if quoted else ": ".join([type(error).__name__, *lines[:1]])
    return text if text.endswith((".", "!", "?")) else f"{text}."


def advise_on_data(error: Exception, frames: list[FrameType], cfg: Config) -> tuple[str, dict] | None:
    """Name the setting of a file or folder that is not there, or say why a dataset is empty."""
    owners = [frame.f_locals.get("self") for frame in frames]
    loop = next((owner for owner in reversed(owners) if isinstance(owner, BaseLoop)), None)
    paths = [
        path for name in ([find_split(owners)] if loop else ["train", "val", "test"]) for path in iter_paths(cfg, name)
    ]
    if any(READER in text for text in (str(error), *(frame.f_code.co_name for frame in frames))):
        dataset = next((owner for owner in owners if isinstance(owner, BaseDataset)), None) or loop.dataloader.dataset
        return next(iter_unreadable(dataset)), {}
    if frames[-1].f_code.co_name == "_find_samples" and isinstance(
        error, AssertionError
    ):  # in which mmpretrain numbers folders
        return why_other_folders(owners[-1]), {}
    if isinstance(owners[-1], BaseDataset) and frames[-1].f_code.co_name == "_serialize_data":
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
        readers = [step for step in part.pipeline.transforms if type(step).__name__.startswith("Load")]
        for info in (part.get_data_info(index) for index in range(len(part))):
            for path in [info[key] for key in ("img_path", "seg_map_path") if isinstance(info.get(key), str)]:
                if not is_image(path, whole=path == info.get("seg_map_path")) and not reads(readers, info):
                    kind = "is empty" if Path(path).exists() and not Path(path).stat().st_size else "is damaged"
                    yield f"{path} {kind}. Replace the file, or remove it with its annotation."


def is_image(path: str, whole: bool) -> bool:
    """Whether Pillow can read an image, or the beginning of it."""
    try:
        with Image.open(path) as image:
            if whole:
                image.load()
    except Exception:
        return False
    return True


def reads(readers: list[Callable], info: dict) -> bool:
    """Whether the transforms that load a sample do so."""
    try:
        for read in readers:
            info = read(info)
    except Exception:
        return False
    return True


def why_other_folders(dataset: BaseDataset) -> str:
    """Which folders make a dataset of other classes than its config names."""
    names = names_in(dataset.metainfo)
    if odd := [name for name in list_images(dataset)[1] if name not in names]:
        return COUNTS_AS_CLASS.format(", ".join(odd))
    others = [name for name in dataset.folder_to_idx if name not in names]
    missing = [name for name in names if name not in dataset.folder_to_idx]
    return f"Folders without a class: {others}; classes without a folder: {missing}. Correct metainfo.classes or these."


def iter_paths(cfg: Config, split: str) -> Iterator[tuple[str, str]]:
    """Iterate over the settings of a split's data that are paths, each with its path."""
    for index, evaluator in enumerate(as_list(cfg.get(f"{split}_evaluator"))):
        if isinstance(evaluator, Mapping) and isinstance(evaluator.get("ann_file"), str):
            number = f".{index}" if isinstance(cfg[f"{split}_evaluator"], list) else ""
            yield f"{split}_evaluator{number}.ann_file", evaluator["ann_file"]
    datasets = [(f"{split}_dataloader.dataset", (cfg.get(f"{split}_dataloader") or {}).get("dataset"))]
    while datasets:
        name, dataset = datasets.pop(0)
        if not isinstance(dataset, Mapping):
            continue
        yield from ((f"{name}.{setting}", path) for setting, path in local_paths(dataset))
        for key in ("dataset", "datasets"):
            many = isinstance(dataset.get(key), list)
            parts = enumerate(as_list(dataset.get(key)))
            datasets += [(f"{name}.{key}.{i}" if many else f"{name}.{key}", part) for i, part in parts]


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
    where = f"ann_file={dataset.ann_file!r} and data_prefix={dataset.data_prefix}"
    if getattr(dataset, "cat_ids", None) == []:
        classes = dataset.metainfo["classes"]
        return f"None of the categories in {dataset.ann_file} is in metainfo.classes={classes}. Correct the names."
    return f"{type(dataset).__name__} is empty. Check {where}, and its filter_cfg."


def advise_on_labels(error: Exception, frames: list[FrameType], cfg: Config) -> tuple[str, dict] | None:
    """Say that a metric needs labels that the samples do not have."""
    metric = frames[-1].f_locals["self"]
    if not isinstance(metric, BaseMetric) or not isinstance(error, KeyError) or frames[-1].f_code.co_name != "process":
        return None
    text = (
        f"{type(metric).__name__} compares with labels, which the samples do not have. Load them in the test pipeline"
    )
    writes = "format_only" in inspect.signature(type(metric)).parameters
    return f"{text}{', or set format_only=True and output_dir to write predictions alone' if writes else ''}.", {}

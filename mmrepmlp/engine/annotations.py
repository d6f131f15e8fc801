# SPDX-License-Identifier: Apache-2.0
"""Which classes a model can learn, and whether the annotations of a data set are of these.

What is not understood here passes: other data sets, heads and losses than those of the frameworks, other types of
labels. A run that cannot work then ends with the framework's own error.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from mmengine.dataset import BaseDataset
from torch import nn

# Packages whose transforms leave labels and their meaning alone.
PACKAGES = ("mmcv", "mmpretrain", "mmseg", "mmdet", "mmrepmlp")
SWITCH = "check_annotations=False in the config skips this check."


class AnnotationError(ValueError):
    """An annotation is of a class that the model does not have."""


@dataclass(frozen=True)
class Classes:
    """The classes of a head.

    Attributes:
        head: The head's name in the config, e.g. ``model.head``.
        number: Their number; labels are below it.
        ignored: Labels that the head ignores.
    """

    head: str
    number: int
    ignored: tuple[int, ...] = ()

    def __str__(self) -> str:
        ignored = f" and ignores {', '.join(map(str, self.ignored))}" if self.ignored else ""
        return f"{self.head} has classes 0 to {self.number - 1}{ignored}"


def image_classes(model: nn.Module) -> Classes | None:
    """The classes of a classifier of mmpretrain; None for other models."""
    head = getattr(model, "head", None)
    number = getattr(head, "num_classes", None)
    known = is_a(model, "ImageClassifier") and is_from(head, "mmpretrain") and isinstance(number, int)
    return Classes("model.head", number) if known else None


def object_classes(model: nn.Module) -> Classes | None:
    """The classes of a detector of mmdetection; None for other models, and for proposals, which have no class."""
    if is_a(model, "RPN"):
        return None
    for owner, prefix in ((model, "model"), (getattr(model, "roi_head", None), "model.roi_head")):
        head = getattr(owner, "bbox_head", None)
        head = head[0] if isinstance(head, nn.ModuleList) and len(head) else head
        number = getattr(head, "num_classes", None)
        if is_from(head, "mmdet") and isinstance(number, int):
            return Classes(f"{prefix}.bbox_head", number)
    return None


def pixel_classes(model: nn.Module) -> Classes | None:
    """The classes of a segmentor of mmsegmentation; None for other models.

    A cross entropy indexes its scores with the labels, so that a label too high is an error. Other losses may do
    without.
    """
    head = getattr(model, "decode_head", None)
    head = head[-1] if isinstance(head, nn.ModuleList) and len(head) else head
    losses = [type(module).__name__ for module in head.modules()] if isinstance(head, nn.Module) else []
    ignored, channels = getattr(head, "ignore_index", None), getattr(head, "out_channels", None)
    if not (is_from(head, "mmseg") and "CrossEntropyLoss" in losses and isinstance(ignored, int)):
        return None
    if not isinstance(channels, int):  # a head that classifies masks
        channels = head.num_classes
    # One channel with a sigmoid distinguishes two classes.
    return Classes("model.decode_head", max(channels, 2), (ignored,))


def is_from(part: object, *packages: str) -> bool:
    """Whether a package defines the very class of an object: a subclass may have its own idea of labels."""
    return type(part).__module__.partition(".")[0] in packages


def keeps_labels(dataset: BaseDataset) -> bool:
    """Whether the labels that a data set tells are certain to be those that the model gets."""
    transforms = getattr(getattr(dataset, "pipeline", None), "transforms", ())
    return isinstance(dataset, BaseDataset) and all(is_from(transform, *PACKAGES) for transform in transforms)


def is_a(model: object, name: str) -> bool:
    """Whether a class of this name is among a model's, which needs no import of its framework."""
    return any(cls.__name__ == name for cls in type(model).__mro__)


def iter_datasets(dataset: object) -> Iterator[BaseDataset]:
    """The data sets inside wrappers that repeat or concatenate them."""
    if hasattr(dataset, "datasets"):
        for part in dataset.datasets:
            yield from iter_datasets(part)
    elif hasattr(dataset, "dataset"):
        yield from iter_datasets(dataset.dataset)
    else:
        yield dataset


def check_labels(dataset: BaseDataset, classes: Classes) -> None:
    """Check the labels of every image of a classification data set.

    Raises:
        AnnotationError: One is not below the number of classes.
    """
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        label = largest_label(info.get("gt_label"))
        if label is not None and label >= classes.number:
            raise AnnotationError(
                f"{info.get('img_path', f'Image {index}')} is of class {label}, but {classes}. Set "
                f"{classes.head}.num_classes={label + 1} or higher, or correct the annotation. {SWITCH}"
            )


def check_instances(dataset: BaseDataset, classes: Classes) -> None:
    """Check the labels of all boxes of a detection data set that names more classes than the model has.

    Raises:
        AnnotationError: One is not below the number of classes.
    """
    named = dataset.metainfo.get("classes")
    if not isinstance(named, Sequence) or len(named) <= classes.number:
        return
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        labels = [instance.get("bbox_label") for instance in info.get("instances", ())]
        label = largest_label([label for label in labels if label is not None])
        if label is not None and label >= classes.number:
            raise AnnotationError(
                f"{info.get('img_path', f'Image {index}')} has boxes of class {label}, {named[label]!r}, but "
                f"{classes}. Set {classes.head}.num_classes={len(named)}, or name fewer classes in the data set's "
                f"metainfo. {SWITCH}"
            )


def largest_label(label: object) -> int | None:
    """The largest of one or several integer labels; None of none, and of labels of another kind."""
    values = np.asarray([] if label is None else label)
    return int(values.max()) if values.size and np.issubdtype(values.dtype, np.integer) else None


def check_class_maps(dataset: BaseDataset, classes: Classes, samples: int) -> None:
    """Check some class maps spread over a segmentation data set.

    Raises:
        AnnotationError: One has pixels of a class that the head does not have.
    """
    for index in np.linspace(0, len(dataset) - 1, min(samples, len(dataset)), dtype=int):
        info = load_class_map(dataset, int(index))
        if info is not None:
            check_class_map(info.get("seg_map_path", f"Class map {index}"), info["gt_seg_map"], classes)


def load_class_map(dataset: BaseDataset, index: int) -> dict | None:
    """Load an image's class map with the data set's own pipeline; None if another transform than mmseg's loads it."""
    load = next((t for t in dataset.pipeline.transforms if is_a(t, "LoadAnnotations") and is_from(t, "mmseg")), None)
    info = load(dataset.get_data_info(index)) if load else {}
    return info if "gt_seg_map" in info else None


def check_class_map(path: str, class_map: np.ndarray, classes: Classes) -> None:
    """Check the values of a class map.

    Raises:
        AnnotationError: It has pixels of a class that the head does not have.
    """
    wrong = class_map[(class_map >= classes.number) & ~np.isin(class_map, classes.ignored)]
    if wrong.size:
        raise AnnotationError(
            f"{path} has {wrong.size} pixels of class {wrong.max()}, but {classes}. Correct the file, or set "
            f"num_classes or ignore_index in the model's heads. {SWITCH}"
        )

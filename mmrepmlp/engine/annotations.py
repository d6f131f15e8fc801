# SPDX-License-Identifier: Apache-2.0
"""Which classes a model can learn, and whether the annotations of a data set are of these.

What is not understood here passes: other data sets, heads and losses than those of the frameworks, other types of
labels. A run that cannot work then ends with the framework's own error.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from torch import nn
from torch.utils.data import DataLoader

# Packages whose data sets, loaders and transforms leave labels and their meaning alone.
PACKAGES = ("mmengine", "mmcv", "mmpretrain", "mmseg", "mmdet", "mmrepmlp")
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


def image_classes(model: nn.Module, cfg: Config) -> Classes | None:
    """The classes of a classifier of mmpretrain; None for other models.

    A few heads, such as CSRAClsHead, do not keep their number: it is in the config.
    """
    head = getattr(model, "head", None)
    if not (is_a(model, "ImageClassifier") and is_known("mmpretrain", head, model)):
        return None
    number = head.num_classes if hasattr(head, "num_classes") else cfg.model.head.get("num_classes")
    return Classes("model.head", number) if isinstance(number, int) else None


def object_classes(model: nn.Module) -> Classes | None:
    """The classes of a detector of mmdetection; None for other models, and where a label is not the index of a score.

    Proposals have no class, to CrowdDet all boxes are of one, and with a language model a data set's text is the
    classes.
    """
    if is_a(model, "RPN", "CrowdDet") or hasattr(model, "language_model"):
        return None
    owner, name = (model.roi_head, "model.roi_head") if hasattr(model, "roi_head") else (model, "model")
    head = getattr(owner, "bbox_head", None)
    head = head[0] if isinstance(head, nn.ModuleList) and len(head) else head
    known, number = is_known("mmdet", head, owner, model), getattr(head, "num_classes", None)
    return Classes(f"{name}.bbox_head", number) if known and isinstance(number, int) else None


def pixel_classes(model: nn.Module) -> Classes | None:
    """The classes of a segmentor of mmsegmentation; None for other models.

    A cross entropy indexes its scores with the labels, so that a label too high is an error. Other losses may do
    without.
    """
    head = getattr(model, "decode_head", None)
    head = head[-1] if isinstance(head, nn.ModuleList) and len(head) else head
    ignored, channels = getattr(head, "ignore_index", None), getattr(head, "out_channels", None)
    if not (is_known("mmseg", head, model) and isinstance(ignored, int) and isinstance(channels, int)):
        return None
    # A head that classifies masks has loss_cls. Other losses are of other labels, e.g. the classes in an image.
    losses = [part for name, part in head.named_modules() if {"loss_decode", "loss_cls"} & set(name.split("."))]
    if not any(is_a(loss, "CrossEntropyLoss") for loss in losses):
        return None
    # One channel with a sigmoid distinguishes two classes.
    return Classes("model.decode_head", max(channels, 2), (ignored,))


def is_known(package: str, head: object, *owners: nn.Module) -> bool:
    """Whether a head with its losses, and all that hands it the labels, are parts of a framework."""
    parts = [part for part in (head, getattr(owners[-1], "data_preprocessor", None)) if isinstance(part, nn.Module)]
    modules = [module for part in parts for module in part.modules()]
    return are_from([head, *owners], package) and are_from(modules, "torch", *PACKAGES)


def are_from(parts: Iterable[object], *packages: str) -> bool:
    """Whether packages define the very classes of objects, or functions: a subclass may read labels differently."""
    return all(getattr(part, "__module__", "").partition(".")[0] in packages for part in parts)


def iter_loaded(loader: DataLoader) -> Iterator[BaseDataset]:
    """Iterate over the data sets of a loader whose labels are certain to be those that the model gets."""
    collate = getattr(loader.collate_fn, "func", loader.collate_fn)  # MMEngine's is a partial
    if are_from([loader.sampler, loader.batch_sampler, collate], "torch", *PACKAGES):
        yield from iter_datasets(loader.dataset)


def iter_datasets(dataset: object) -> Iterator[BaseDataset]:
    """Iterate over the data sets inside wrappers, as far as all these are of the frameworks."""
    transforms = list(iter_transforms(getattr(dataset, "pipeline", None)))
    # A KeyMapper can put other labels in place of those of the data set.
    if not are_from(transforms, *PACKAGES) or any(is_a(transform, "KeyMapper") for transform in transforms):
        return
    if isinstance(dataset, BaseDataset):
        if are_from([type(dataset).__getitem__, type(dataset).prepare_data], *PACKAGES):
            yield dataset
    elif are_from([dataset], *PACKAGES):
        for part in getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]:
            yield from iter_datasets(part)


def iter_transforms(part: object) -> Iterator[object]:
    """Iterate over the transforms of a pipeline and those inside of others, such as RandomApply."""
    if isinstance(part, (list, tuple)):
        for transform in part:
            yield from iter_transforms(transform)
    elif callable(part):  # the transforms of Albu are settings
        yield part
        yield from iter_transforms(getattr(part, "transforms", None))


def is_a(part: object, *names: str) -> bool:
    """Whether a class of one of these names is among an object's, which needs no import of its framework."""
    return any(cls.__name__ in names for cls in type(part).__mro__)


def check_labels(dataset: BaseDataset, classes: Classes) -> None:
    """Check the labels of every image of a classification data set.

    Raises:
        AnnotationError: One is not below the number of classes.
    """
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        # Where there are scores, they are the target.
        label = largest_label(None if "gt_score" in info else info.get("gt_label"))
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
        used = [instance for instance in info.get("instances", ()) if not instance.get("ignore_flag")]
        label = largest_label([instance["bbox_label"] for instance in used if "bbox_label" in instance])
        if label is not None and label >= classes.number:
            name = f", {named[label]!r}," if label < len(named) else ""
            raise AnnotationError(
                f"{info.get('img_path', f'Image {index}')} has boxes of class {label}{name} but {classes}. Set "
                f"{classes.head}.num_classes={max(len(named), label + 1)}, or name fewer classes in the data set's "
                f"metainfo. {SWITCH}"
            )


def largest_label(label: object) -> int | None:
    """The largest of one or several integer labels; None of none, and of labels of another kind."""
    if type(label) is int:  # of a million images, in seconds
        return label
    values = np.asarray([] if label is None else label)
    return int(values.max()) if values.size and np.issubdtype(values.dtype, np.integer) else None


def check_class_maps(dataset: BaseDataset, classes: Classes, samples: int) -> str | None:
    """Check some class maps spread over a segmentation data set.

    Returns:
        What is likely to be a mistake: that there is but one class beside what is ignored, as in masks of 0 and 255.

    Raises:
        AnnotationError: One has pixels of a class that the head does not have.
    """
    labels = set()
    for index in np.linspace(0, len(dataset) - 1, min(samples, len(dataset)), dtype=int):
        info = load_class_map(dataset, int(index))
        if info is not None:
            check_class_map(info.get("seg_map_path", f"Class map {index}"), info["gt_seg_map"], classes)
            labels.update(np.unique(info["gt_seg_map"]).tolist())
    ignored = labels.intersection(classes.ignored)
    if not ignored or len(labels - ignored) > 1:
        return None
    return (
        f"The class maps that were read have no other label than {' and '.join(map(str, sorted(labels)))}, of which "
        f"{', '.join(map(str, ignored))} is ignored. A label that stands for a class must be below {classes.number}."
    )


def load_class_map(dataset: BaseDataset, index: int) -> dict | None:
    """Load an image's class map with the data set's own pipeline; None if another transform than mmseg's loads it."""
    load = next((t for t in dataset.pipeline.transforms if is_a(t, "LoadAnnotations") and are_from([t], "mmseg")), None)
    info = load(dataset.get_data_info(index)) if load else {}
    return info if "gt_seg_map" in info else None


def check_class_map(path: str, class_map: np.ndarray, classes: Classes) -> None:
    """Check the values of a class map.

    Raises:
        AnnotationError: It has pixels of a class that the head does not have.
    """
    high = class_map[class_map >= classes.number]
    wrong = high[~np.isin(high, classes.ignored)]
    if wrong.size:
        raise AnnotationError(
            f"{path} has {wrong.size} pixels of class {wrong.max()}, but {classes}. Correct the file, or set "
            f"num_classes or ignore_index in the model's heads. {SWITCH}"
        )

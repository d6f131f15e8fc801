# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator, Sequence

import mmengine
import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmrepmlp.registry import HOOKS

HEADS = ("head", "decode_head", "auxiliary_head", "bbox_head", "mask_head")  # names of heads in the frameworks


@HOOKS.register_module()
class CheckAnnotationsHook(Hook):
    """Reject annotations of classes that the model does not have, which otherwise cause index errors or are dropped.

    Checked before training: labels of all images (mmpretrain), categories of all annotations (mmdetection), and class
    maps of some images spread over the data set (mmsegmentation). The other class maps are checked when they are
    loaded.

    Args:
        samples: Number of class maps to read before training. Default: 100.
    """

    def __init__(self, samples: int = 100) -> None:
        self.samples = samples
        self.num_classes: int | None = None

    def before_train(self, runner: Runner) -> None:
        """Check the training set.

        Raises:
            ValueError: An annotation is of a class that the model does not have.
        """
        self.num_classes = count_classes(runner.model)
        if self.num_classes is None:
            return
        for dataset in iter_datasets(runner.train_dataloader.dataset):
            check_class_count(dataset, self.num_classes)
            if hasattr(dataset, "get_gt_labels"):
                check_labels(dataset, self.num_classes)
            elif hasattr(dataset, "cat_ids"):
                check_categories(dataset)
            elif hasattr(dataset, "reduce_zero_label"):
                for index in np.linspace(0, len(dataset) - 1, min(self.samples, len(dataset)), dtype=int):
                    path, class_map = load_class_map(dataset, int(index))
                    check_class_map(path, class_map, self.num_classes, dataset.ignore_index)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Check the class maps of a batch.

        Raises:
            ValueError: A class map holds a class that the model does not have.
        """
        samples = data_batch.get("data_samples") if isinstance(data_batch, dict) else None
        for sample in samples if isinstance(samples, Sequence) and self.num_classes else ():
            if "gt_sem_seg" in sample and "seg_map_path" in sample:
                class_map = sample.gt_sem_seg.data.numpy()
                check_class_map(sample.seg_map_path, class_map, self.num_classes)


def count_classes(model: nn.Module) -> int | None:
    """Number of classes of a model; None if its heads have no ``num_classes``."""
    model = getattr(model, "module", model)
    for owner in (model, getattr(model, "roi_head", None)):
        for name in HEADS:
            head = getattr(owner, name, None)
            head = head[0] if isinstance(head, nn.ModuleList) else head
            if hasattr(head, "num_classes"):
                return head.num_classes
    return None


def iter_datasets(dataset: object) -> Iterator[BaseDataset]:
    """The data sets inside wrappers that repeat or concatenate them."""
    if hasattr(dataset, "datasets"):
        for part in dataset.datasets:
            yield from iter_datasets(part)
    elif hasattr(dataset, "dataset"):
        yield from iter_datasets(dataset.dataset)
    else:
        yield dataset


def check_class_count(dataset: BaseDataset, num_classes: int) -> None:
    """Compare the number of classes of a data set with the model's."""
    classes = dataset.metainfo.get("classes")
    if classes is not None and len(classes) > num_classes:
        raise ValueError(
            f"{type(dataset).__name__} has {len(classes)} classes, the model {num_classes}. Set "
            f"num_classes={len(classes)} in the model's heads, or name fewer classes in the data set's metainfo."
        )


def check_labels(dataset: BaseDataset, num_classes: int) -> None:
    """Check the label of every image of a classification data set."""
    labels = dataset.get_gt_labels()
    if len(labels) and labels.max() >= num_classes:
        path = dataset.get_data_info(int(labels.argmax()))["img_path"]
        raise ValueError(
            f"{path} is of class {labels.max()}, but the model has classes 0 to {num_classes - 1}. Set "
            f"model.head.num_classes={labels.max() + 1}, or correct the annotation."
        )


def check_categories(dataset: BaseDataset) -> None:
    """Check that COCO annotations use declared categories only: others would be dropped silently."""
    content = mmengine.load(dataset.ann_file)
    declared = {category["id"] for category in content["categories"]}
    undeclared = {a["category_id"]: a["id"] for a in content["annotations"] if a["category_id"] not in declared}
    if undeclared:
        category, annotation = next(iter(undeclared.items()))
        raise ValueError(
            f"{dataset.ann_file}: annotation {annotation} is of category {category}, which its 'categories' "
            f"({len(declared)}) do not declare. Declare it, or correct the annotation."
        )


def load_class_map(dataset: BaseDataset, index: int) -> tuple[str, np.ndarray]:
    """The class map of an image as the data set's own pipeline loads it, before augmentation."""
    load = next(t for t in dataset.pipeline.transforms if type(t).__name__ == "LoadAnnotations")
    info = load(dataset.get_data_info(index))
    return info["seg_map_path"], info["gt_seg_map"]


def check_class_map(path: str, class_map: np.ndarray, num_classes: int, ignore_index: int = 255) -> None:
    """Check the values of a class map."""
    wrong = class_map[(class_map >= num_classes) & (class_map != ignore_index)]
    if wrong.size:
        raise ValueError(
            f"{path} has {wrong.size} pixels of class {wrong.max()}, but the model has classes 0 to {num_classes - 1}, "
            f"and {ignore_index} for pixels to ignore. Correct the file, or set num_classes in the model's heads."
        )

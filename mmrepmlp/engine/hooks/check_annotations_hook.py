# SPDX-License-Identifier: Apache-2.0
import warnings
from collections.abc import Iterator
from contextlib import suppress

import torch
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmrepmlp.registry import HOOKS

# Where the labels of each head are in a sample.
LABELS = {
    "head": "gt_label",
    "decode_head": "gt_sem_seg.data",
    "roi_head.bbox_head": "gt_instances.labels",
    "bbox_head": "gt_instances.labels",
}
FRAMEWORKS = ("torch", "mmengine", "mmcv", "mmpretrain", "mmseg", "mmdet", "mmrepmlp")
SWITCH = "check_annotations=False in the config skips this check."


class AnnotationError(ValueError):
    """An annotation is of a class that the model does not have."""


@HOOKS.register_module()
class CheckAnnotationsHook(Hook):
    """Reject labels of classes that the model does not have, which otherwise end in a device assert or as background.

    Reads what passes by anyway: the labels of each training batch, and before training what the built datasets know of
    their classes. Models, heads and losses of other packages pass, since they may read labels differently.

    Args:
        samples: No longer used. Default: None.
    """

    def __init__(self, samples: int | None = None) -> None:
        if samples is not None:
            warnings.warn(
                "CheckAnnotationsHook: samples has no effect, no masks are read before training", stacklevel=2
            )
        self.head: str | None = None
        self.classes = 0
        self.ignored: list[int] = []

    def before_train(self, runner: Runner) -> None:
        """Compare the class names of the training set with those of its files.

        Raises:
            AnnotationError: A COCO file has none of the categories that its dataset names, and there is no other
                dataset.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        with suppress(AttributeError):  # of models of a kind that is not understood
            self.head, self.classes, self.ignored = find_head(model)
        datasets = list(iter_datasets(runner.train_dataloader.dataset))
        for dataset in datasets:
            names, folders = dataset.metainfo.get("classes"), list(getattr(dataset, "folder_to_idx", ()))
            if getattr(dataset, "cat_ids", None) == []:
                text = f"None of the categories in {dataset.ann_file} is in metainfo.classes={names}: no box is used."
                if len(datasets) == 1:
                    raise AnnotationError(f"{text} Correct the names. {SWITCH}")
                runner.logger.warning(text)
            elif folders and any(name in folders and folders.index(name) != i for i, name in enumerate(names)):
                runner.logger.warning(
                    f"{dataset.img_prefix.rstrip('/')} numbers the classes in the order {folders}, but the config "
                    f"names them in the order {list(names)}. Use the former, or predictions get wrong names."
                )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Compare the labels of a batch with the classes of the head.

        Raises:
            AnnotationError: A label is of a class that the head does not have.
        """
        samples = data_batch.get("data_samples") if self.head and isinstance(data_batch, dict) else None
        for sample in samples if isinstance(samples, (list, tuple)) else ():
            labels = labels_of(sample, LABELS[self.head])
            wrong = labels[labels >= self.classes]
            wrong = wrong[~torch.isin(wrong, wrong.new_tensor(self.ignored))]
            if wrong.numel():
                path = sample.get("seg_map_path") or sample.get("img_path") or "An image"
                raise AnnotationError(
                    f"{path} has labels of class {wrong.max()}, but model.{self.head} has classes 0 to "
                    f"{self.classes - 1}{' and ignores ' * bool(self.ignored)}{', '.join(map(str, self.ignored))}. "
                    f"Correct the annotation, or set model.{self.head}.num_classes. {SWITCH}"
                )


def find_head(model: nn.Module) -> tuple[str | None, int, list[int]]:
    """The name of the head that labels are of, the number of its classes, and the labels that it ignores.

    Raises:
        AttributeError: It has no such number.
    """
    name = next((name for name in LABELS if hasattr(model, name.partition(".")[0])), None)
    head = model.get_submodule(name) if name else None
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    parts = [model, *model.data_preprocessor.modules(), *(head.modules() if head else ())]
    kinds = {kind.__name__ for part in parts for kind in type(part).__mro__}
    known = all(type(part).__module__.partition(".")[0] in FRAMEWORKS for part in parts)
    # Proposals have no class, to CrowdDet all boxes are of one, and with a language model the text is the classes.
    if not (known and head) or kinds & {"RPN", "CrowdDet"} or hasattr(model, "language_model"):
        return None, 0, []
    if name != "decode_head":
        return name, head.num_classes, []
    # A cross entropy indexes scores with the labels of pixels, or of masks; other losses may do without.
    losses = [part for path, part in head.named_modules() if {"loss_decode", "loss_cls"} & set(path.split("."))]
    if not any(kind.__name__ == "CrossEntropyLoss" for loss in losses for kind in type(loss).__mro__):
        return None, 0, []
    return name, max(head.out_channels, 2), [head.ignore_index]  # one channel distinguishes two classes


def iter_datasets(dataset: object) -> Iterator[BaseDataset]:
    """Iterate over the datasets inside wrappers."""
    if isinstance(dataset, BaseDataset):
        yield dataset
    for part in getattr(dataset, "datasets", None) or [getattr(dataset, "dataset", None)]:
        if part is not None:
            yield from iter_datasets(part)


def labels_of(sample: object, name: str) -> Tensor:
    """The integer labels of a sample; none where it has others, or scores in their place."""
    labels = None if hasattr(sample, "gt_score") else sample
    for key in name.split("."):
        labels = getattr(labels, key, None)
    known = isinstance(labels, Tensor) and not labels.is_floating_point()
    return labels if known else torch.empty(0, dtype=torch.long)

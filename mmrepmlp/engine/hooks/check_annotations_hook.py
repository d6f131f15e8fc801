# SPDX-License-Identifier: Apache-2.0
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import torch
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmrepmlp.registry import HOOKS

from .annotation_files import (
    COUNTS_AS_CLASS,
    SWITCH,
    TURNED,
    AnnotationError,
    annotated_sizes,
    check_mask,
    image_size,
    iter_datasets,
    list_images,
    names_in,
    turned_size,
)

# Where the labels of each head are in a sample.
LABELS = {
    "head": "gt_label",
    "decode_head": "gt_sem_seg.data",
    "roi_head.bbox_head": "gt_instances.labels",
    "bbox_head": "gt_instances.labels",
}
FRAMEWORKS = ("torch", "mmengine", "mmcv", "mmpretrain", "mmseg", "mmdet", "mmrepmlp")
ONE_CLASS = (
    "mmsegmentation's mIoU of a single class counts the background as well: finding nothing scores high. Name both in "
    "metainfo.classes, and set model.decode_head.num_classes=2 and model.decode_head.out_channels=1."
)


@HOOKS.register_module()
class CheckAnnotationsHook(Hook):
    """Compare annotations with the model and with their files, where what does not fit gives wrong results in silence.

    Reads what passes by anyway: batches, and before a run what the built datasets know of their classes. Models, heads
    and losses of other packages pass, since they may read labels differently.

    - Rejected are labels of classes that the model does not have, which end in a device assert or as background, masks
      of several channels or more than 8 bits, losses that are constant, since they compare a single channel by softmax,
      and folders that number the classes in another order than in training.
    - Warnings name other datasets with another order, folders that are no class, images with an extension that is not
      read, and an image that is turned by its EXIF orientation while its annotation may not be.

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
        self.trained: list[str] = []  # the names of the classes
        self.seen: set[str] = set()
        self.sizes: dict[str, tuple[int, int]] | None = None  # of images in annotation files
        self.turned = False  # whether an image is, by its EXIF orientation

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember the classes that weights were trained on."""
        meta = checkpoint.get("meta")
        self.trained = names_in(meta.get("dataset_meta") or meta) if isinstance(meta, Mapping) else []

    def before_train(self, runner: Runner) -> None:
        """Compare the classes of the datasets with those of their files and of the model.

        Raises:
            AnnotationError: A COCO file has none of the categories that its dataset names, and there is no other
                dataset; folders number the classes differently for validation; a loss is constant.
        """
        check_losses(self.find_head(runner))
        self.trained = []  # not those of a checkpoint that it starts from, but of the first dataset
        self.check_datasets(runner, runner.train_dataloader.dataset)
        if runner.val_loop:
            self.check_datasets(runner, runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        """Compare the classes of the test set with those that the checkpoint was trained on, as before training."""
        self.find_head(runner)
        self.check_datasets(runner, runner.test_dataloader.dataset)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Compare the labels of a batch with the classes of the head, and with their files.

        Raises:
            AnnotationError: A label is of a class that the head does not have, or a mask cannot be read as one.
        """
        samples = samples_in(data_batch)
        self.check_files(runner, runner.train_dataloader.dataset, samples)
        for sample in samples if self.head else ():
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

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Compare the annotations of a batch with their files."""
        self.check_files(runner, runner.val_dataloader.dataset, samples_in(data_batch))

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Compare the annotations of a batch with their files."""
        self.check_files(runner, runner.test_dataloader.dataset, samples_in(data_batch))

    def find_head(self, runner: Runner) -> nn.Module:
        """Find the head that labels are of, and return the model."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        with suppress(AttributeError):  # of models of a kind that is not understood
            self.head, self.classes, self.ignored = find_head(model)
        return model

    def check_datasets(self, runner: Runner, dataset: object) -> None:
        """Compare the classes of datasets with those of their files, of the training, and of the head."""
        datasets = list(iter_datasets(dataset))
        for dataset in datasets:
            with suppress(AttributeError, KeyError, OSError, TypeError):  # of a kind that is not understood
                for text in self.faults(dataset, len(datasets) == 1):
                    runner.logger.warning(text)

    def faults(self, dataset: BaseDataset, alone: bool) -> Iterator[str]:
        """Iterate over what is wrong with a dataset.

        Raises:
            AnnotationError: It makes results wrong.
        """
        names = names_in(dataset.metainfo)
        if getattr(dataset, "cat_ids", None) == []:
            text = f"None of the categories in {dataset.ann_file} is in metainfo.classes={names}: no box is used."
            if alone:
                raise AnnotationError(f"{text} Correct the names. {SWITCH}")
            yield text
        if hasattr(dataset, "label_map") and len(names) == 1:  # of mmsegmentation
            yield ONE_CLASS
        folder, odd, unread = list_images(dataset)
        if unread:
            kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(unread.items()))
            setting = "extensions" if hasattr(dataset, "extensions") else "img_suffix"
            yield f"{folder} has images that are not read: {kinds}. Convert them, or set {setting} of the dataset."
        folders = list(getattr(dataset, "folder_to_idx", ()))
        yield from self.faults_in_order(folder or f"the {type(dataset).__name__}", names, folders, odd)

    def faults_in_order(self, place: str, names: list, folders: list[str], odd: list[str]) -> Iterator[str]:
        """Compare the numbers of classes with those in training, and with the folders that number them."""
        trained, self.trained = self.trained, self.trained or names
        new = [name for name in odd if name not in trained]  # a class of the training may have no image here
        advice = COUNTS_AS_CLASS.format(", ".join(new)) if new else ""
        moved = [name for name in names if name in trained and trained.index(name) != names.index(name)]
        if moved:
            text = (
                f"Class {moved[0]!r} has number {names.index(moved[0])} in {place}, but {trained.index(moved[0])} in "
            )
            text += f"training: {list_difference(names, trained)}. {advice or 'Both need the same classes.'}"
            if folders:
                raise AnnotationError(f"{text} {SWITCH}")
            yield text
        elif new and len(folders) > self.classes > 0:
            text = f"{place} has {len(folders)} folders, but model.{self.head} has classes 0 to {self.classes - 1}."
            raise AnnotationError(f"{text} {advice} {SWITCH}")
        elif new:
            yield f"{place}: {advice}"
        if any(name in folders and folders.index(name) != i for i, name in enumerate(names)):
            yield (
                f"{place} numbers the classes in the order {folders}, but the config names them in the order {names}. "
                "Use the former, or predictions get wrong names."
            )

    def check_files(self, runner: Runner, dataset: object, samples: Sequence[object]) -> None:
        """Compare annotations with the files they are from, each file once."""
        dataset = next(iter_datasets(dataset), None)
        transforms = getattr(getattr(dataset, "pipeline", None), "transforms", ())
        by_mmseg = any(
            type(part).__module__.startswith("mmseg.") for part in transforms if hasattr(part, "_load_seg_map")
        )
        turns = any(getattr(part, "color_type", None) in ("color", "grayscale") for part in transforms)
        for sample in samples:
            image, mask = (getattr(sample, name, None) for name in ("img_path", "seg_map_path"))
            if image in self.seen or not (mask or hasattr(sample, "gt_instances")):
                continue
            self.seen.add(image)
            if mask and by_mmseg:  # other readers may take more of a mask
                check_mask(mask, getattr(sample, "gt_sem_seg", None))
            if turns and not self.turned:
                self.check_orientation(runner, dataset, image, mask)

    def check_orientation(self, runner: Runner, dataset: BaseDataset, image: str, mask: str | None) -> None:
        """Warn of an image that is turned where it is read, while its annotation has the size of the stored one."""
        with suppress(Exception):  # of datasets of a kind that is not understood
            if (size := turned_size(image)) and not mask and self.sizes is None:
                self.sizes = annotated_sizes(dataset)
            if size and size == (image_size(mask) if mask else self.sizes.get(image)):
                self.turned = True
                runner.logger.warning(TURNED.format(image, *size))


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


def check_losses(model: nn.Module) -> None:
    """Reject losses that compare one channel by softmax, which is always 1: they are constant, and fail on label 1.

    Raises:
        AnnotationError: There is one.
    """
    for name in ("head", "decode_head", "auxiliary_head"):
        heads = getattr(model, name, ())
        for head in heads if isinstance(heads, (nn.ModuleList, tuple)) else [heads]:
            losses = getattr(head, "loss_decode", getattr(head, "loss_module", ()))
            losses = losses if isinstance(losses, (nn.ModuleList, tuple)) else [losses]
            single = getattr(head, "out_channels", getattr(head, "num_classes", 0)) == 1
            if single and any(is_constant(loss, (1, 1, 8, 8) if name != "head" else (8, 1)) for loss in losses):
                raise AnnotationError(
                    f"model.{name} has a single channel, and softmax makes it 1 everywhere, so that its loss is "
                    f"constant. Set use_sigmoid=True in its loss, or give it two channels, one a class. {SWITCH}"
                )


def is_constant(loss: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a loss of scores of one channel does not depend on them, with whichever of two labels it takes."""
    slopes = []
    for classes in (1, 2):
        scores = torch.linspace(-1, 1, math.prod(shape)).view(shape).requires_grad_()
        labels = (torch.arange(scores.numel()) % classes).view(shape[0], *shape[2:])
        with suppress(Exception):  # of losses that take something else
            loss(scores, labels).sum().backward()
            slopes.append(scores.grad.any())
    return bool(slopes) and not any(slopes)


def list_difference(names: list, trained: list) -> str:
    """Say which classes are in one of two lists."""
    extra, missing = ([str(name) for name in a if name not in b] for a, b in ((names, trained), (trained, names)))
    found = {"new are": extra, "missing are": missing}
    return " and ".join(f"{word} {', '.join(names)}" for word, names in found.items() if names) or "the order differs"


def samples_in(data_batch: object) -> Sequence[object]:
    """The data samples of a batch; none in one of another kind."""
    samples = data_batch.get("data_samples") if isinstance(data_batch, dict) else None
    return samples if isinstance(samples, (list, tuple)) else ()


def labels_of(sample: object, name: str) -> Tensor:
    """The integer labels of a sample; none where it has others, or scores in their place."""
    labels = None if hasattr(sample, "gt_score") else sample
    for key in name.split("."):
        labels = getattr(labels, key, None)
    known = isinstance(labels, Tensor) and not labels.is_floating_point()
    return labels if known else torch.empty(0, dtype=torch.long)

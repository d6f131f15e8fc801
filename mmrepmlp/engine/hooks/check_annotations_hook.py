# SPDX-License-Identifier: Apache-2.0
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress

import torch
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from mmrepmlp.checkpoint import meta_of, trained_metainfo
from mmrepmlp.registry import HOOKS

from .annotated_heads import LABELS, check_losses, find_head, labels_of
from .annotation_files import SWITCH, AnnotationError, check_mask, explain_rotation, iter_datasets, list_images
from .switch_to_deploy_hook import get_model

MMSEG_READER = "mmseg.datasets.transforms.loading.LoadAnnotations"
MASKS = 20
ALL_IGNORED = (
    "{} masks have no class but 0 and {}, which is ignored. If the numbers in them are 0 and 255, divide the numbers "
    "by 255."
)
ONE_CLASS = (
    "mmsegmentation's mIoU of a single class counts the background as well: finding nothing scores high. Name both "
    "classes in metainfo.classes, and set model.decode_head.num_classes=2 and model.decode_head.out_channels=1."
)


@HOOKS.register_module()
class CheckAnnotationsHook(Hook):
    """Check annotations against the model and their files, where a mismatch would silently give wrong results.

    The hook only looks at the batches of the run and, before it, at the classes of the datasets. Models, heads and
    losses of other packages are not checked, since they may read labels differently.

    - Errors: labels of classes that the model does not have, which end in a device assert or as background; masks with
      several channels or more than 8 bits; losses that are constant, since they apply softmax to a single channel; and
      folders that number the classes in another order than in training.
    - Warnings: other datasets with another order of classes; folders that are not a class; images with an extension
      that is not read; and an image that is rotated by its EXIF orientation while its annotation may not be.

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
        self.without_class: int | None = 0  # masks so far, until one has a class besides number 0
        self.seen: set[str] = set()
        self.rotated = False  # whether an image was, by its EXIF orientation

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember the classes that the weights were trained on."""
        self.trained = list(trained_metainfo(meta_of(checkpoint)).get("classes", ()))

    def before_train(self, runner: Runner) -> None:
        """Compare the classes of the datasets with those of their files and of the model."""
        check_losses(self.find_head(runner))
        self.trained = []  # a new training has its own classes, those of the first dataset
        self.check_datasets(runner, runner.train_dataloader.dataset)
        if runner.val_loop:
            self.check_datasets(runner, runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        """Compare the classes of the test set with those that the checkpoint was trained on, as before training."""
        self.find_head(runner)
        self.check_datasets(runner, runner.test_dataloader.dataset)

    def _before_iter(self, runner: Runner, batch_idx: int, data_batch: object = None, mode: str = "train") -> None:
        """Compare the annotations of a batch with their files and, in training, with the classes of the head."""
        samples = data_batch.get("data_samples") if isinstance(data_batch, dict) else None
        samples = samples if isinstance(samples, (list, tuple)) else ()
        self.check_files(runner, getattr(runner, f"{mode}_dataloader").dataset, samples)
        for sample in samples if self.head and mode == "train" else ():
            labels = labels_of(sample, LABELS[self.head])
            if self.head == "decode_head":
                self.count_masks(runner, labels)
            wrong = labels[labels >= self.classes]
            wrong = wrong[~torch.isin(wrong, wrong.new_tensor(self.ignored))]
            if wrong.numel():
                path = sample.get("seg_map_path") or sample.get("img_path") or "An image"
                raise AnnotationError(
                    f"{path} has labels of class {wrong.max()}, but model.{self.head} has classes 0 to "
                    f"{self.classes - 1}{' and ignores ' * bool(self.ignored)}{', '.join(map(str, self.ignored))}. "
                    f"Correct the annotation, or set model.{self.head}.num_classes. {SWITCH}"
                )

    def count_masks(self, runner: Runner, labels: Tensor) -> None:
        """Warn if many masks have class 0 and ignored labels only."""
        if self.without_class is None or not torch.isin(labels, labels.new_tensor(self.ignored)).any():
            return
        self.without_class += 1
        if ((labels > 0) & (labels < self.classes)).any():
            self.without_class = None
        elif self.without_class == MASKS:
            runner.logger.warning(ALL_IGNORED.format(MASKS, self.ignored[0]))

    def find_head(self, runner: Runner) -> nn.Module:
        """Find the head that takes the labels, and return the model."""
        model = get_model(runner)
        with suppress(AttributeError):  # models of an unknown kind
            self.head, self.classes, self.ignored = find_head(model)
        return model

    def check_datasets(self, runner: Runner, dataset: object) -> None:
        """Compare the classes of datasets with those of their files, of training, and of the head."""
        datasets = list(iter_datasets(dataset))
        for dataset in datasets:
            with suppress(AttributeError, KeyError, OSError, TypeError):  # datasets of an unknown kind
                for text in self.faults(dataset, len(datasets) == 1):
                    runner.logger.warning(text)

    def faults(self, dataset: BaseDataset, is_single: bool) -> Iterator[str]:
        """Yield warnings about a dataset, and raise an error if results would be wrong."""
        names = list(dataset.metainfo.get("classes") or ())
        if getattr(dataset, "cat_ids", None) == []:
            text = f"None of the categories in {dataset.ann_file} is in metainfo.classes={names}: no box is used."
            if is_single:
                raise AnnotationError(f"{text} Correct the names. {SWITCH}")
            yield text
        if hasattr(dataset, "label_map") and len(names) == 1:  # a dataset of mmsegmentation
            yield ONE_CLASS
        folder, odd, unread = list_images(dataset)
        if unread:
            kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(unread.items()))
            setting = "extensions" if hasattr(dataset, "extensions") else "img_suffix"
            yield f"{folder} has images that are not read: {kinds}. Convert them, or set {setting} of the dataset."
        place, folders = folder or f"the {type(dataset).__name__}", list(getattr(dataset, "folder_to_idx", ()))
        trained, self.trained = self.trained, self.trained or names
        new = [name for name in odd if name not in trained]  # a class of training may have no image here
        advice = f"{', '.join(new)} counts as a class, but is hidden or has no image. Remove it." if new else ""
        moved = [name for name in names if name in trained and trained.index(name) != names.index(name)]
        if moved:
            numbers = f"number {names.index(moved[0])} in {place}, but {trained.index(moved[0])} in training"
            others = [str(name) for name in (*names, *trained) if (name in names) != (name in trained)]
            advice = (
                advice or f"Both need the same classes in the same order; not in both: {', '.join(others) or 'none'}."
            )
            text = f"Class {moved[0]!r} has {numbers}. {advice}"
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
        """Compare annotations with their files, each file once."""
        pipeline = next((part.pipeline for part in iter_datasets(dataset)), None)
        transforms = getattr(pipeline, "transforms", ())
        by_mmseg = MMSEG_READER in {f"{type(part).__module__}.{type(part).__name__}" for part in transforms}
        rotates = any(getattr(part, "color_type", None) in ("color", "grayscale") for part in transforms)
        for sample in samples:
            image, mask = (getattr(sample, name, None) for name in ("img_path", "seg_map_path"))
            if image in self.seen or not (mask or hasattr(sample, "gt_instances")):
                continue
            self.seen.add(image)
            if mask and by_mmseg:  # other readers may take more of a mask
                with suppress(AttributeError, OSError):  # samples without a mask, and files elsewhere
                    check_mask(mask, sample.gt_sem_seg.data)
            if rotates and not self.rotated:
                with suppress(Exception):  # datasets of an unknown kind
                    warning = explain_rotation(dataset, image, mask)
                    self.rotated = warning is not None
                    if warning:
                        runner.logger.warning(warning)

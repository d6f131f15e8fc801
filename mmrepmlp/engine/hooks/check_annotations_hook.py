# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable, Sequence

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmrepmlp.registry import HOOKS

from ..annotations import (
    AnnotationError,
    Classes,
    check_class_map,
    check_class_maps,
    check_instances,
    check_labels,
    image_classes,
    iter_loaded,
    object_classes,
    pixel_classes,
)
from ..class_names import check_class_names


@HOOKS.register_module()
class CheckAnnotationsHook(Hook):
    """Reject annotations of classes that the model does not have, which otherwise end in index errors or as background.

    Checked before training: labels of all images (mmpretrain), labels of all boxes (mmdetection), and class maps of
    some images spread over the data set (mmsegmentation). The other class maps are checked when they are loaded. Names
    of classes that match no category are rejected as well. What is likely to be a mistake is logged: names in another
    order than that of the folders or categories, and class maps of one class beside what is ignored.

    What the hook does not understand passes, such as models, losses and transforms of other packages, and what goes
    wrong in the check itself is logged and does not stop the training.

    Args:
        samples: Number of class maps to read before training. Default: 100.
    """

    def __init__(self, samples: int = 100) -> None:
        self.samples = samples
        self.pixel_classes: Classes | None = None

    def before_train(self, runner: Runner) -> None:
        """Check the training set.

        Raises:
            AnnotationError: An annotation is of a class that the model does not have, or none is of a class that the
                data set names.
        """
        attempt(runner, self._check_datasets, runner)
        attempt(runner, self._check_class_names, runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Check the class maps of a batch.

        Raises:
            AnnotationError: A class map holds a class that the model does not have.
        """
        known = self.pixel_classes and isinstance(data_batch, dict)
        if known and not attempt(runner, self._check_batch, data_batch.get("data_samples")):
            self.pixel_classes = None

    def _check_datasets(self, runner: Runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.pixel_classes = pixel_classes(model)
        for dataset in iter_loaded(runner.train_dataloader):
            if classes := image_classes(model, runner.cfg):
                check_labels(dataset, classes)
            if classes := object_classes(model):
                check_instances(dataset, classes)
            if self.pixel_classes:
                mistake = check_class_maps(dataset, self.pixel_classes, self.samples)
                if mistake:
                    runner.logger.warning(mistake)

    def _check_class_names(self, runner: Runner) -> None:
        loader = runner.train_dataloader
        for dataset in iter_loaded(loader):
            for mistake in check_class_names(dataset, alone=dataset is loader.dataset):
                runner.logger.warning(mistake)

    def _check_batch(self, samples: object) -> None:
        for sample in samples if isinstance(samples, Sequence) else ():
            if "gt_sem_seg" in sample:
                path = sample.metainfo.get("seg_map_path", "A class map")
                check_class_map(path, sample.gt_sem_seg.data.numpy(), self.pixel_classes)


def attempt(runner: Runner, check: Callable[..., None], *arguments: object) -> bool:
    """Run a check, and tell whether it came to its end; only what it is made to find stops the training."""
    try:
        check(*arguments)
    except AnnotationError:
        raise
    except Exception as error:
        runner.logger.warning(f"The annotations are not checked: {type(error).__name__}: {error}")
        return False
    return True

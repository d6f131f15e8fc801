# SPDX-License-Identifier: Apache-2.0
"""The labels that the heads of a model take."""

import math
from contextlib import suppress
from operator import attrgetter

import torch
from torch import Tensor, nn

from .annotation_files import SWITCH, AnnotationError

# Where the labels of each head are in a sample.
LABELS = {
    "head": "gt_label",
    "decode_head": "gt_sem_seg.data",
    "roi_head.bbox_head": "gt_instances.labels",
    "bbox_head": "gt_instances.labels",
}
FRAMEWORKS = ("torch", "mmengine", "mmcv", "mmpretrain", "mmseg", "mmdet", "mmrepmlp")


def find_head(model: nn.Module) -> tuple[str | None, int, list[int]]:
    """Find the head that takes the labels of a model.

    Returns:
        Its name, its number of classes, and the labels that it ignores; None, 0 and an empty list for heads that may
        read labels differently.
    """
    name = next((name for name in LABELS if hasattr(model, name.partition(".")[0])), None)
    head = model.get_submodule(name) if name else None
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    parts = [model, *model.data_preprocessor.modules(), *(head.modules() if head else ())]
    kinds = {kind.__name__ for part in parts for kind in type(part).__mro__}
    known = all(type(part).__module__.partition(".")[0] in FRAMEWORKS for part in parts)
    # Proposals have no class, CrowdDet has one for all boxes, and with a language model the text gives the classes.
    if not (known and head) or kinds & {"RPN", "CrowdDet"} or hasattr(model, "language_model"):
        return None, 0, []
    if name != "decode_head":
        return name, head.num_classes, []
    # Cross entropy indexes scores by the labels of pixels, or of masks; other losses may not.
    losses = [part for path, part in head.named_modules() if {"loss_decode", "loss_cls"} & set(path.split("."))]
    if not any(kind.__name__ == "CrossEntropyLoss" for loss in losses for kind in type(loss).__mro__):
        return None, 0, []
    return name, max(head.out_channels, 2), [head.ignore_index]  # one channel distinguishes two classes


def check_losses(model: nn.Module) -> None:
    """Reject losses that apply softmax to one channel, which always gives 1: they are constant, and fail on label 1."""
    for name, head in model.named_modules():
        losses = getattr(head, "loss_decode", getattr(head, "loss_module", None))
        if losses is None or getattr(head, "out_channels", getattr(head, "num_classes", 0)) != 1:
            continue
        shape = (1, 1, 8, 8) if hasattr(head, "loss_decode") else (8, 1)
        if any(is_constant(loss, shape) for loss in (losses if isinstance(losses, nn.ModuleList) else [losses])):
            raise AnnotationError(
                f"model.{name} has a single channel, and softmax makes it 1 everywhere, so that its loss is "
                f"constant. Set use_sigmoid=True in its loss, or give it two channels, one for each class. {SWITCH}"
            )


def is_constant(loss: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a loss on one channel does not depend on the scores, with labels of one class and of two."""
    slopes = []
    for classes in (1, 2):
        scores = torch.linspace(-1, 1, math.prod(shape)).view(shape).requires_grad_()
        labels = (torch.arange(scores.numel()) % classes).view(shape[0], *shape[2:])
        with suppress(Exception):  # losses may take other arguments
            loss(scores, labels).sum().backward()
            slopes.append(scores.grad.any())
    return bool(slopes) and not any(slopes)


def labels_of(sample: object, name: str) -> Tensor:
    """Return the integer labels of a sample; none if it has other labels, or scores in their place."""
    with suppress(AttributeError):  # samples of another type
        labels = attrgetter(name)(sample)
        if not (hasattr(sample, "gt_score") or labels.is_floating_point()):
            return labels
    return torch.empty(0, dtype=torch.long)

# SPDX-License-Identifier: Apache-2.0
"""Convert predictions to JSON, and to label maps beside it."""

from collections.abc import Callable

import numpy as np
from mmengine.structures import BaseDataElement
from torch import nn

from mmrepmlp.errors import MMRepMLPError

INSTANCE_OFFSET = 1000  # mmdet numbers the segments of a panoptic map as 1000 * instance + label


def describe(sample: BaseDataElement, model: nn.Module, name_of: Callable[[int], str]) -> dict:
    """Convert a prediction to plain data, with the names that the frameworks' inferencers use.

    Args:
        sample: The prediction.
        model: The model that made it.
        name_of: Function that returns the name of a class.

    Returns:
        For a classifier, ``pred_label``, ``pred_class``, ``pred_score`` and ``pred_scores``, and ``pred_labels`` unless
        it is exactly the best label; for a detector, ``labels``, ``names``, ``scores``, ``bboxes`` and ``masks`` of its
        objects; for a model that segments whole images, the array ``sem_seg`` with the ``labels`` and ``names`` in it,
        or the array ``panoptic_seg`` with its ``segments``.

    Raises:
        MMRepMLPError: The model is not a classifier, segmentor or detector.
    """
    result = {}
    if "pred_score" in sample:
        scores, label = sample.pred_score.tolist(), int(sample.pred_score.argmax())
        result |= dict(pred_label=label, pred_class=name_of(label), pred_score=scores[label], pred_scores=scores)
        if (labels := sample.pred_label.tolist()) != [label]:
            result["pred_labels"] = labels
    if "pred_sem_seg" in sample:
        result["sem_seg"] = class_map(sample)
        result["labels"] = np.unique(result["sem_seg"]).tolist()
        result["names"] = [name_of(label) for label in result["labels"]]
    if "pred_instances" in sample:
        from mmdet.apis import DetInferencer

        # Boxes (x1, y1, x2, y2) in pixels and masks in COCO's RLE; the method does not use its inferencer for these.
        result |= DetInferencer.pred2dict(None, type(sample)(pred_instances=sample.pred_instances))
        result["names"] = [name_of(label) for label in result["labels"]]
    if "pred_panoptic_seg" in sample:
        segments = np.asarray(sample.pred_panoptic_seg.sem_seg)[0].astype(np.int64)
        no_class = getattr(getattr(model, "panoptic_fusion_head", None), "num_classes", None)
        labels = {number: number % INSTANCE_OFFSET for number in np.unique(segments).tolist() if number != no_class}
        result["panoptic_seg"] = segments
        result["segments"] = [dict(id=id_, label=label, name=name_of(label)) for id_, label in labels.items()]
    if not result:
        raise MMRepMLPError(
            f"The model predicts {', '.join(sample.keys()) or 'nothing'}: expected a classifier, segmentor or detector."
        )
    return result


def class_map(sample: BaseDataElement) -> np.ndarray:
    """Return the class of each pixel (H, W); binary segmentation predicts them as floats."""
    maps = sample.pred_sem_seg
    return np.asarray(maps.get("data", maps.get("sem_seg")))[0].astype(np.int64)


def to_png(kind: str, array: np.ndarray) -> np.ndarray:
    """Convert a label map to an image that PNG stores without loss.

    Classes become gray values of 8 or 16 bits, segment numbers BGR values, as in COCO.
    """
    if kind == "panoptic_seg":
        return np.stack([array >> shift & 255 for shift in (16, 8, 0)], 2).astype(np.uint8)
    return array.astype(np.uint8 if array.max() < 2**8 else np.uint16)


def labels_of(sample: BaseDataElement) -> list[int]:
    """Return labels in a prediction, among them the largest."""
    labels = []
    if "pred_score" in sample:
        labels += [len(sample.pred_score) - 1]
    if "pred_sem_seg" in sample:
        labels += [int(class_map(sample).max())]
    if "pred_instances" in sample:
        labels += sample.pred_instances.labels.tolist()
    return labels

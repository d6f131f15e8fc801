# SPDX-License-Identifier: Apache-2.0
"""What a prediction is as JSON, and as maps of labels beside it."""

from collections.abc import Callable

import numpy as np
from mmengine.structures import BaseDataElement

from mmrepmlp.errors import MMRepMLPError

INSTANCE_OFFSET = 1000  # mmdet numbers the segments of a panoptic map: 1000 * instance + label


def describe(sample: BaseDataElement, inferencer: object, name_of: Callable[[int], str]) -> dict:
    """A prediction as plain data, under the names that the frameworks' inferencers use.

    Returns:
        Of a classifier ``pred_label``, ``pred_class``, ``pred_score`` and ``pred_scores``, and ``pred_labels`` if it is
        not exactly one; of a detector ``labels``, ``names``, ``scores``, ``bboxes`` and ``masks`` of its objects; of a
        model that segments whole images ``sem_seg`` or ``panoptic_seg``, an array, and ``labels`` and ``names``, or
        ``segments``, that occur in it.

    Raises:
        MMRepMLPError: The prediction is of another kind.
    """
    kinds = {
        "pred_score": describe_classes,
        "pred_sem_seg": describe_class_map,
        "pred_instances": describe_instances,
        "pred_panoptic_seg": describe_segments,
    }
    found = [kind for kind in kinds if kind in sample]
    if not found:
        raise MMRepMLPError(
            f"The model predicts {', '.join(sample.keys()) or 'nothing'}: expected a classifier, segmentor or detector."
        )
    result = {}
    for kind in found:
        result |= kinds[kind](sample, inferencer, name_of)
    return result


def describe_classes(sample: BaseDataElement, inferencer: object, name_of: Callable[[int], str]) -> dict:
    """The most likely class, and the scores of all."""
    scores = sample.pred_score.tolist()
    label = int(sample.pred_score.argmax())
    result = dict(pred_label=label, pred_class=name_of(label), pred_score=scores[label], pred_scores=scores)
    labels = sample.pred_label.tolist()
    return result if labels == [label] else {**result, "pred_labels": labels}


def describe_class_map(sample: BaseDataElement, inferencer: object, name_of: Callable[[int], str]) -> dict:
    """The class of each pixel."""
    labels = class_map(sample)
    present = np.unique(labels).tolist()
    return dict(sem_seg=labels, labels=present, names=[name_of(label) for label in present])


def describe_instances(sample: BaseDataElement, inferencer: object, name_of: Callable[[int], str]) -> dict:
    """The objects, as mmdetection's inferencer has them: boxes in pixels, x1, y1, x2, y2, and masks in COCO's RLE."""
    objects = type(sample)(pred_instances=sample.pred_instances)
    result = inferencer.pred2dict(objects)
    return {**result, "names": [name_of(label) for label in result["labels"]]}


def describe_segments(sample: BaseDataElement, inferencer: object, name_of: Callable[[int], str]) -> dict:
    """The segment of each pixel, by its number, and the label of each segment."""
    segments = np.asarray(sample.pred_panoptic_seg.sem_seg)[0].astype(np.int64)
    no_class = getattr(getattr(inferencer.model, "panoptic_fusion_head", None), "num_classes", None)
    numbers = [number for number in np.unique(segments).tolist() if number != no_class]
    labels = {number: number % INSTANCE_OFFSET for number in numbers}
    listed = [dict(id=number, label=label, name=name_of(label)) for number, label in labels.items()]
    return dict(panoptic_seg=segments, segments=listed)


def class_map(sample: BaseDataElement) -> np.ndarray:
    """The class of each pixel, shape (H, W); binary segmentation gives them as floats."""
    maps = sample.pred_sem_seg
    return np.asarray(maps.get("data", maps.get("sem_seg")))[0].astype(np.int64)


def to_picture(kind: str, array: np.ndarray) -> np.ndarray:
    """A map as PNG stores it without loss: classes in grey, 8 or 16 bits, numbers of segments in BGR as COCO does."""
    if kind == "panoptic_seg":
        return np.stack([array >> shift & 255 for shift in (16, 8, 0)], 2).astype(np.uint8)
    return array.astype(np.uint8 if array.max() < 2**8 else np.uint16)


def labels_of(sample: BaseDataElement) -> list[int]:
    """Labels that a prediction names."""
    labels = []
    if "pred_score" in sample:
        labels += [len(sample.pred_score) - 1]
    if "pred_sem_seg" in sample:
        labels += [int(class_map(sample).max())]
    if "pred_instances" in sample:
        labels += sample.pred_instances.labels.tolist()
    return labels

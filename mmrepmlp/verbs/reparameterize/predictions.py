# SPDX-License-Identifier: Apache-2.0
"""Compare two sets of predictions for the same test images: metrics of each, and how often they agree."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import METRICS, DefaultScope

from mmrepmlp.verbs.config import dataset_metainfo, resolve_type

CLOSE = 0.01  # largest distance in pixels between the corners of two equal boxes
OVERLAP = 0.99  # smallest intersection over union of two equal masks
IMAGE_KEYS = ("img_path", "img_id", "sample_idx")  # which of them a sample has, its config decides
COCO_TYPES = dict(bbox="box", segm="mask")


@dataclass
class Agreement:
    """Agreement of two sets of predictions; pairs are (before, after).

    Attributes:
        metrics: Their metrics in percent, by name; none where the data set has no annotations.
        same: Number of equal predictions.
        total: Number of all predictions.
        unit: What is counted: images, pixels or detections.
    """

    metrics: dict[str, tuple[float, float]]
    same: int
    total: int
    unit: str


def compare_predictions(before: Sequence[dict], after: Sequence[dict], cfg: Config) -> Agreement:
    """Compare predictions of a classifier, segmentor or detector.

    Args:
        before: Predictions written by ``tools/test.py --out`` for one form of a model.
        after: The same for the other form.
        cfg: The config that both were tested with.

    Raises:
        ValueError: There are no predictions, or they belong to different images, or to an unsupported task.
    """
    if not before or not after:
        raise ValueError("There are no predictions. Write them with tools/test.py --out.")
    if [image_of(sample) for sample in before] != [image_of(sample) for sample in after]:
        raise ValueError("The predictions belong to different images. Test both forms on the same test set.")
    if "pred_score" in before[0]:
        several = any("gt_score" in s or ("gt_label" in s and s["gt_label"].numel() != 1) for s in before)
        return (compare_label_sets if several else compare_classes)(before, after)
    if "pred_panoptic_seg" in before[0]:
        return compare_segments(before, after)
    if "pred_sem_seg" in before[0]:
        ignore = next((e.ignore_index for e in evaluators_of(cfg) if "ignore_index" in e), 255)
        return compare_class_maps(before, after, ignore, class_names(cfg))
    if "pred_instances" in before[0]:
        return compare_detections(before, after, coco_evaluator(cfg), class_names(cfg))
    if all(isinstance(task, Mapping) for task in before[0].values()):
        return compare_tasks(before, after, cfg)
    raise ValueError(
        f"The predictions hold {', '.join(before[0])}: expected those of a classifier, segmentor or detector."
    )


def compare_tasks(before: Sequence[dict], after: Sequence[dict], cfg: Config) -> Agreement:
    """Compare the predictions of several classifiers of the same images, by the names of their tasks."""
    metrics, same, total = {}, 0, 0
    for task in before[0]:
        agreement = compare_predictions(*([sample[task] for sample in samples] for samples in (before, after)), cfg)
        metrics |= {f"{task}: {name}": values for name, values in agreement.metrics.items()}
        same, total = same + agreement.same, total + agreement.total
    return Agreement(metrics, same, total, "predictions")


def image_of(sample: dict) -> list[object]:
    """What names the image of a sample."""
    return [sample.get(key) for key in IMAGE_KEYS]


def evaluators_of(cfg: Config) -> list[ConfigDict]:
    """The configs of the metrics of a test."""
    evaluators = cfg.get("test_evaluator") or []
    return evaluators if isinstance(evaluators, list) else [evaluators]


def coco_evaluator(cfg: Config) -> ConfigDict | None:
    """The config of the metric that compares with a COCO file, if there is one."""
    from mmdet.evaluation import CocoMetric

    with DefaultScope.overwrite_default_scope(cfg.get("default_scope")):
        for evaluator in evaluators_of(cfg):
            kind = resolve_type(evaluator, METRICS)
            if evaluator.get("ann_file") and isinstance(kind, type) and issubclass(kind, CocoMetric):
                return evaluator
    return None


def class_names(cfg: Config) -> Sequence[str] | None:
    """The classes of the test set, in the order of the labels; None where its config does not tell."""
    return dataset_metainfo(cfg).get("classes")


def compare_classes(before: Sequence[dict], after: Sequence[dict]) -> Agreement:
    """Compare classified images, by top-1 accuracy if there are labels."""
    guesses = [torch.stack([sample["pred_score"] for sample in samples]).argmax(1) for samples in (before, after)]
    metrics = {}
    if all("gt_label" in sample for sample in before):
        truth = torch.cat([sample["gt_label"] for sample in before])
        metrics["top-1 accuracy"] = tuple(100 * (guess == truth).double().mean().item() for guess in guesses)
    return Agreement(metrics, int((guesses[0] == guesses[1]).sum()), len(guesses[0]), "images")


def compare_label_sets(before: Sequence[dict], after: Sequence[dict]) -> Agreement:
    """Compare images with several labels each by mean average precision; equal are scores on the same side of 0.5."""
    from mmpretrain.evaluation import AveragePrecision

    scores = [torch.stack([sample["pred_score"] for sample in samples]) for samples in (before, after)]
    truth = torch.stack([label_vector(sample, scores[0].size(1)) for sample in before])
    precisions = tuple(float(AveragePrecision.calculate(score, truth)) for score in scores)
    same = int(((scores[0] >= 0.5) == (scores[1] >= 0.5)).sum())
    return Agreement({"mAP": precisions}, same, truth.numel(), "labels")


def label_vector(sample: dict, classes: int) -> torch.Tensor:
    """The labels of a sample as a vector of zeros and ones; negative scores mark labels that are not known."""
    if "gt_score" in sample:
        return sample["gt_score"]
    return torch.zeros(classes).index_fill(0, sample["gt_label"].long(), 1)


def compare_segments(before: Sequence[dict], after: Sequence[dict]) -> Agreement:
    """Compare panoptic segmentations pixel by pixel; their quality needs the annotations of the data set."""
    maps = [
        np.concatenate([np.asarray(sample["pred_panoptic_seg"]["sem_seg"]).ravel() for sample in samples])
        for samples in (before, after)
    ]
    same = int((maps[0] == maps[1]).sum())
    return Agreement({}, same, maps[0].size, "pixels")


def compare_class_maps(
    before: Sequence[dict], after: Sequence[dict], ignore: int = 255, classes: Sequence[str] | None = None
) -> Agreement:
    """Compare segmented images, by mean intersection over union if there are annotations.

    Args:
        before: Predictions of one form.
        after: Predictions of the other.
        ignore: Label of pixels that do not count. Default: 255.
        classes: Names of all classes. Default: those that occur.
    """
    maps = [pixels(samples, "pred_sem_seg") for samples in (before, after)]
    metrics = {}
    if all("gt_sem_seg" in sample for sample in before):
        truth = pixels(before, "gt_sem_seg")
        valid = truth != ignore
        if valid.any():
            number = len(classes) if classes else None
            metrics["mIoU"] = tuple(100 * mean_iou(truth[valid], guess[valid], number) for guess in maps)
    return Agreement(metrics, int((maps[0] == maps[1]).sum()), maps[0].size, "pixels")


def pixels(samples: Sequence[dict], name: str) -> np.ndarray:
    """The class maps of all images as one vector; binary segmentation gives them as floats."""
    return np.concatenate([sample[name]["data"].numpy().ravel().astype(np.int64) for sample in samples])


def mean_iou(truth: np.ndarray, guess: np.ndarray, classes: int | None = None) -> float:
    """Intersection over union, averaged over the classes that are present.

    Args:
        truth: True classes of pixels.
        guess: Predicted classes.
        classes: Number of classes; pixels of others count as none. Default: as many as occur.
    """
    classes = int(max(truth.max(), guess.max())) + 1 if classes is None else classes

    def areas(labels: np.ndarray) -> np.ndarray:
        return np.bincount(labels[(labels >= 0) & (labels < classes)], minlength=classes)

    hits = areas(truth[truth == guess])
    union = areas(truth) + areas(guess) - hits
    return float((hits[union > 0] / union[union > 0]).mean())


def compare_detections(
    before: Sequence[dict], after: Sequence[dict], evaluator: ConfigDict | None, classes: Sequence[str] | None
) -> Agreement:
    """Compare detected objects, by COCO's average precision if there are annotations.

    Args:
        before: Predictions of one form.
        after: Predictions of the other.
        evaluator: Config of a CocoMetric; None for no metrics.
        classes: Names of all classes, in the order of the labels. Default: all of the COCO file.
    """
    metrics = {}
    if evaluator:
        precisions = [average_precision(samples, evaluator, classes) for samples in (before, after)]
        metrics = {name: (precisions[0][name], precisions[1][name]) for name in precisions[0]}
    pairs = [(a["pred_instances"], b["pred_instances"]) for a, b in zip(before, after)]
    same = sum(count_same_objects(a, b) for a, b in pairs)
    return Agreement(metrics, same, sum(max(len(a["labels"]), len(b["labels"])) for a, b in pairs), "detections")


def count_same_objects(a: dict, b: dict) -> int:
    """Number of detections of an image with the same rank and class, and the same box and mask as far as there are
    any, within CLOSE pixels and OVERLAP."""
    number = min(len(a["labels"]), len(b["labels"]))
    same = a["labels"][:number] == b["labels"][:number]
    if number and "bboxes" in a:
        same = same & ((a["bboxes"][:number] - b["bboxes"][:number]).abs().amax(1) < CLOSE)
    if number and isinstance(a.get("masks"), torch.Tensor):
        first, second = a["masks"][:number].bool(), b["masks"][:number].bool()
        shared, covered = ((first & second).sum((1, 2)), (first | second).sum((1, 2)))
        same = same & (shared >= OVERLAP * covered)
    return int(same.sum())


def average_precision(
    samples: Sequence[dict], evaluator: ConfigDict, classes: Sequence[str] | None
) -> dict[str, float]:
    """COCO's AP and AP50 of boxes and masks in percent, as mmdet.CocoMetric computes them, not rounded."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    types = [kind for kind in COCO_TYPES if kind in evaluator.get("metric", "bbox")]
    metrics = {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(evaluator.ann_file)
        categories = truth.getCatIds(catNms=list(classes or []))  # in the order of the file, as mmdet numbers them
        for kind in types:
            stats = (0.0, 0.0)
            if results := coco_results(samples, categories, kind):
                evaluation = COCOeval(truth, truth.loadRes(results), kind)
                evaluation.params.catIds = categories
                evaluation.params.maxDets = list(evaluator.get("proposal_nums", (100, 300, 1000)))
                evaluation.evaluate()
                evaluation.accumulate()
                evaluation.summarize()
                stats = evaluation.stats
            for name, value in zip(("AP", "AP50"), stats):
                metrics[f"{COCO_TYPES[kind]} {name}"] = 100 * float(value)
    return metrics


def coco_results(samples: Sequence[dict], categories: Sequence[int], kind: str) -> list[dict]:
    """Detections as COCO's list of results, of boxes (``bbox``) or masks (``segm``)."""
    from mmdet.structures.mask import encode_mask_results

    results = []
    for sample in samples:
        found = sample["pred_instances"]
        scores = found.get("mask_scores", found["scores"]) if kind == "segm" else found["scores"]
        if kind == "segm":
            masks = found["masks"]
            shapes = encode_mask_results(masks.numpy()) if isinstance(masks, torch.Tensor) else masks
            shapes = [dict(segmentation=shape) for shape in shapes]
        else:
            shapes = [dict(bbox=[x, y, x2 - x, y2 - y]) for x, y, x2, y2 in found["bboxes"].tolist()]
        results += [
            dict(image_id=sample["img_id"], category_id=categories[label], score=score, **shape)
            for shape, label, score in zip(shapes, found["labels"].tolist(), scores.tolist())
        ]
    return results

# SPDX-License-Identifier: Apache-2.0
"""Compare two sets of predictions for the same test images: metrics of each, and how often they agree."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mmengine.config import Config

CLOSE = 0.01  # largest distance in pixels between the corners of two equal boxes


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
        ValueError: The predictions belong to different images, or to an unsupported task.
    """
    if [sample["img_path"] for sample in before] != [sample["img_path"] for sample in after]:
        raise ValueError("The predictions belong to different images. Test both forms on the same test set.")
    if "pred_score" in before[0]:
        several = any("gt_score" in s or ("gt_label" in s and s["gt_label"].numel() != 1) for s in before)
        return (compare_label_sets if several else compare_classes)(before, after)
    if "pred_sem_seg" in before[0]:
        return compare_class_maps(before, after)
    if "pred_panoptic_seg" in before[0]:
        return compare_segments(before, after)
    if "pred_instances" in before[0]:
        evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
        return compare_detections(before, after, next((e.ann_file for e in evaluators if e.get("ann_file")), None))
    raise ValueError(
        f"The predictions hold {', '.join(before[0])}: expected those of a classifier, segmentor or detector."
    )


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


def compare_class_maps(before: Sequence[dict], after: Sequence[dict], ignore: int = 255) -> Agreement:
    """Compare segmented images, by mean intersection over union if there are annotations."""
    maps = [
        np.concatenate([sample["pred_sem_seg"]["data"].numpy().ravel() for sample in samples])
        for samples in (before, after)
    ]
    metrics = {}
    if all("gt_sem_seg" in sample for sample in before):
        truth = np.concatenate([sample["gt_sem_seg"]["data"].numpy().ravel() for sample in before])
        valid = truth != ignore
        metrics["mIoU"] = tuple(100 * mean_iou(truth[valid], guess[valid]) for guess in maps)
    return Agreement(metrics, int((maps[0] == maps[1]).sum()), maps[0].size, "pixels")


def mean_iou(truth: np.ndarray, guess: np.ndarray) -> float:
    """Intersection over union, averaged over the classes that are present."""
    classes = int(max(truth.max(), guess.max())) + 1
    hits = np.bincount(truth[truth == guess], minlength=classes)
    union = np.bincount(truth, minlength=classes) + np.bincount(guess, minlength=classes) - hits
    return float((hits[union > 0] / union[union > 0]).mean())


def compare_detections(before: Sequence[dict], after: Sequence[dict], ann_file: str | None) -> Agreement:
    """Compare detected boxes, by COCO's average precision if there are annotations."""
    precisions = [average_precision(samples, ann_file) if ann_file else {} for samples in (before, after)]
    pairs = [(a["pred_instances"], b["pred_instances"]) for a, b in zip(before, after)]
    same = sum(count_same_boxes(a, b) for a, b in pairs)
    metrics = {name: (precisions[0][name], precisions[1][name]) for name in precisions[0]}
    return Agreement(metrics, same, sum(max(len(a["labels"]), len(b["labels"])) for a, b in pairs), "detections")


def count_same_boxes(a: dict, b: dict) -> int:
    """Number of detections of an image with the same rank, the same class and, within CLOSE pixels, the same box."""
    number = min(len(a["labels"]), len(b["labels"]))
    apart = (a["bboxes"][:number] - b["bboxes"][:number]).abs().amax(1) if number else torch.zeros(0)
    return int(((a["labels"][:number] == b["labels"][:number]) & (apart < CLOSE)).sum())


def average_precision(samples: Sequence[dict], ann_file: str) -> dict[str, float]:
    """COCO's box AP and AP50 in percent, computed by pycocotools, not rounded."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(ann_file)
        categories = sorted(truth.getCatIds())
        results = [
            dict(image_id=sample["img_id"], category_id=categories[label], bbox=[x, y, x2 - x, y2 - y], score=score)
            for sample in samples
            for (x, y, x2, y2), label, score in zip(
                *(sample["pred_instances"][key].tolist() for key in ("bboxes", "labels", "scores"))
            )
        ]
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox") if results else None
        if evaluation is None:
            return {"box AP": 0.0, "box AP50": 0.0}
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"box AP": 100 * float(evaluation.stats[0]), "box AP50": 100 * float(evaluation.stats[1])}

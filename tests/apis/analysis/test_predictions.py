# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmrepmlp.apis.analysis.predictions import compare_predictions, mean_iou


def test_mean_iou_averages_over_the_classes_that_occur():
    truth, guess = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 1, 1, 0, 3])
    assert mean_iou(truth, guess) == pytest.approx((2 / 4 + 1 / 3 + 1) / 3)


def test_images_with_several_labels():
    scores = torch.tensor([[0.9, 0.6, 0.1], [0.2, 0.7, 0.3], [0.1, 0.2, 0.8]])
    moved = scores.clone()
    moved[1, 1] = 0.4
    labels = [torch.tensor([0, 1]), torch.tensor([1]), torch.tensor([2])]

    def samples(values):
        return [dict(img_path=str(i), pred_score=v, gt_label=t) for i, (v, t) in enumerate(zip(values, labels))]

    agreement = compare_predictions(samples(scores), samples(moved), Config())
    assert (agreement.same, agreement.total, agreement.unit) == (8, 9, "labels")
    assert agreement.metrics == {"mAP": (100.0, 100.0)}  # each class still ranks its own images first
    moved[1, 1] = 0.1
    assert compare_predictions(samples(scores), samples(moved), Config()).metrics["mAP"][1] < 100
    for sample in (known := samples(scores)):
        sample["gt_score"] = torch.zeros(3).index_fill(0, sample["gt_label"], 1)
    assert compare_predictions(known, samples(scores), Config()).metrics == {"mAP": (100.0, 100.0)}


def test_panoptic_segmentations():
    def samples(*maps):
        return [dict(img_path=str(i), pred_panoptic_seg=dict(sem_seg=m), pred_instances={}) for i, m in enumerate(maps)]

    first, second = np.arange(12).reshape(1, 3, 4), np.zeros((1, 2, 2), int)
    changed = np.where(first == 7, 1000, first)
    agreement = compare_predictions(samples(first, second), samples(changed, second), Config())
    assert (agreement.same, agreement.total, agreement.unit) == (15, 16, "pixels") and agreement.metrics == {}


def test_data_sets_without_annotations_have_no_metrics():
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    classes = [[dict(img_path=str(i), pred_score=s) for i, s in enumerate(v)] for v in (scores, scores.flip(0))]
    agreement = compare_predictions(*classes, Config())
    assert (agreement.metrics, agreement.same, agreement.total) == ({}, 0, 2)
    maps = [[dict(img_path="a", pred_sem_seg=dict(data=torch.full((1, 2, 3), v)))] for v in (1, 1)]
    assert compare_predictions(*maps, Config()).metrics == {}
    boxes = dict(labels=torch.tensor([1]), scores=torch.tensor([0.5]), bboxes=torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    found = [dict(img_path="a", pred_instances=boxes)]
    agreement = compare_predictions(found, found, Config(dict(test_evaluator=[dict(type="DumpResults")])))
    assert (agreement.metrics, agreement.same, agreement.total) == ({}, 1, 1)

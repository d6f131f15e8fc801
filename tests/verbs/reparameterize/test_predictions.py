# SPDX-License-Identifier: Apache-2.0
import json
import pickle

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmpretrain.evaluation import Accuracy
from mmseg.evaluation import IoUMetric

from mmrepmlp.verbs.reparameterize.compare_forms import read_predictions
from mmrepmlp.verbs.reparameterize.predictions import compare_predictions, mean_iou


def framework_metrics(metric: BaseMetric, samples: list[dict], classes: list[str] | None = None) -> dict[str, float]:
    metric.dataset_meta = dict(classes=classes)
    metric.process({}, samples)
    return metric.evaluate(len(samples))


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


def test_several_tasks():
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])

    def samples(values):
        digit = [dict(img_path=str(i), pred_score=v, gt_label=torch.tensor([0])) for i, v in enumerate(values)]
        return [dict(digit=a, even=dict(img_path=a["img_path"], pred_score=v)) for a, v in zip(digit, scores)]

    agreement = compare_predictions(samples(scores), samples(1 - scores), Config())
    assert (agreement.same, agreement.total, agreement.unit) == (3, 6, "predictions")
    assert agreement.metrics == {"digit: top-1 accuracy": pytest.approx((200 / 3, 100 / 3))}
    with pytest.raises(ValueError, match="different images"):
        compare_predictions(samples(scores), samples(scores.flip(0))[::-1], Config())


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


def test_top1_is_that_of_mmpretrain():
    samples = [dict(img_path=str(i), pred_score=torch.rand(5), gt_label=torch.tensor([i % 5])) for i in range(40)]
    expected = framework_metrics(Accuracy(), samples)["accuracy/top1"]
    agreement = compare_predictions(samples, samples, Config())
    assert agreement.metrics == {"top-1 accuracy": pytest.approx((expected, expected))}


CLASSES = list("abcde")


@pytest.mark.parametrize(
    "dtype, number, ignore",
    [(torch.long, 5, 255), (torch.long, 5, 0), (torch.long, 5, 4), (torch.float32, 2, 255)],  # floats if binary
)
@pytest.mark.parametrize("strangers", [False, True])  # annotations of classes that the data set does not have
def test_mean_iou_is_that_of_mmseg(dtype, number, ignore, strangers):
    samples = []
    for i in range(3):
        truth = torch.randint(number + strangers, (1, 7 + i, 8))
        truth[:, :2] = ignore
        guess = torch.where(torch.rand(truth.shape) < 0.5, truth, torch.randint(number, truth.shape)) % number
        samples.append(dict(img_path=str(i), pred_sem_seg=dict(data=guess.to(dtype)), gt_sem_seg=dict(data=truth)))
    classes = CLASSES[:number]
    expected = framework_metrics(IoUMetric(ignore_index=ignore), samples, classes)["mIoU"]
    evaluator = dict(type="mmseg.IoUMetric", ignore_index=ignore)
    evaluators = [dict(type="DumpResults"), {k: v for k, v in evaluator.items() if v != 255}]  # the default
    dataset = dict(type="RepeatDataset", dataset=dict(type="mmseg.BaseSegDataset", metainfo=dict(classes=classes)))
    cfg = Config(dict(test_evaluator=evaluators, test_dataloader=dict(dataset=dataset)))
    agreement = compare_predictions(samples, samples, cfg)
    assert agreement.metrics == {"mIoU": pytest.approx((expected, expected), abs=0.006)}  # theirs is rounded
    assert agreement.same == agreement.total == 3 * 8 * 8


def test_class_maps_without_a_valid_pixel_have_no_metrics():
    ignored = torch.full((1, 2, 2), 255)
    samples = [dict(img_path="a", pred_sem_seg=dict(data=ignored * 0), gt_sem_seg=dict(data=ignored))]
    assert compare_predictions(samples, samples, Config()).metrics == {}


@pytest.fixture
def instances(tmp_path):
    """Random detections, more than 100 in an image, and annotations whose categories are in no order."""
    categories = [dict(id=i, name=name) for i, name in ((7, "b"), (2, "unused"), (9, "a"))]
    truth, samples = [], []
    for image in range(3):
        corners = torch.randint(20, (130, 2)).float()
        boxes = torch.cat([corners, corners + torch.randint(5, 20, (130, 2))], 1)
        masks = torch.zeros(130, 40, 40, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
            mask[y1:y2, x1:x2] = True
        labels = torch.randint(2, (130,))
        found = dict(labels=labels, scores=torch.rand(130), bboxes=boxes, masks=masks)
        samples.append(dict(img_path=str(image), img_id=image, ori_shape=(40, 40), pred_instances=found))
        for (x1, y1, x2, y2), label in zip(boxes[::5].tolist(), labels[::5].tolist()):
            polygon = [[x1, y1, x2, y1, x2, y2, x1, y2]]
            where = dict(bbox=[x1, y1, x2 - x1, y2 - y1], area=(x2 - x1) * (y2 - y1), segmentation=polygon)
            truth.append(dict(id=len(truth) + 1, image_id=image, category_id=(7, 9)[label], iscrowd=0, **where))
    images = [dict(id=i, width=40, height=40) for i in range(3)]
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(dict(images=images, annotations=truth, categories=categories)))
    return str(file), samples


def test_average_precisions_are_those_of_mmdet(instances):
    ann_file, samples = instances
    settings = dict(ann_file=ann_file, metric=["bbox", "segm"])
    theirs = framework_metrics(CocoMetric(**settings), samples, ["a", "b"])
    dataset = dict(type="mmdet.CocoDataset", metainfo=dict(classes=("a", "b")))
    evaluators = [
        dict(type="mmdet.CocoPanopticMetric", ann_file="other.json"),
        dict(type="mmdet.CocoMetric", **settings),
    ]
    cfg = Config(dict(test_evaluator=evaluators, test_dataloader=dict(dataset=dataset)))
    agreement = compare_predictions(samples, samples, cfg)
    names = {"box AP": "bbox_mAP", "box AP50": "bbox_mAP_50", "mask AP": "segm_mAP", "mask AP50": "segm_mAP_50"}
    assert agreement.metrics.keys() == names.keys()
    for name, values in agreement.metrics.items():
        assert values == pytest.approx((100 * theirs[f"coco/{names[name]}"],) * 2, abs=0.06) and values[0] > 1
    assert (agreement.same, agreement.total, agreement.unit) == (390, 390, "detections")


def test_objects_are_the_same_by_class_box_and_mask(instances):
    _, samples = instances

    def same(**changes):
        found = samples[0]["pred_instances"]
        changed = {**found, **{key: change(found[key]) for key, change in changes.items()}}
        return compare_predictions([{**samples[0], "pred_instances": changed}, *samples[1:]], samples, Config()).same

    def set_first(value):
        return lambda x: torch.cat([torch.full_like(x[:1], value), x[1:]])

    assert same() == 390
    assert same(labels=set_first(5)) == same(bboxes=set_first(-9)) == same(masks=set_first(False)) == 389
    for sample in samples:  # of a model that predicts masks alone
        del sample["pred_instances"]["bboxes"]
    assert same() == 390 and same(masks=set_first(False)) == 389
    nothing = [dict(img_id=0, pred_instances=dict(labels=torch.zeros(0), bboxes=torch.zeros(0, 4)))]
    agreement = compare_predictions(nothing, nothing, Config())
    assert (agreement.same, agreement.total, agreement.metrics) == (0, 0, {})


def test_predictions_belong_to_the_same_images():
    samples = [dict(img_id=i, pred_score=torch.rand(2)) for i in range(2)]
    assert compare_predictions(samples, samples, Config()).total == 2
    with pytest.raises(ValueError, match="different images"):
        compare_predictions(samples, samples[::-1], Config())
    with pytest.raises(ValueError, match="There are no predictions"):
        compare_predictions([], [], Config())


@pytest.mark.parametrize("content", [b"", b"model = dict()", pickle.dumps(dict(a=1))])
def test_files_without_predictions_are_named(content, tmp_path):
    path = tmp_path / "a.pkl"
    with pytest.raises(FileNotFoundError):
        read_predictions(path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a.pkl holds .*Write them with tools/test.py --out"):
        read_predictions(path)

# SPDX-License-Identifier: Apache-2.0
"""Which metrics are numbers, and what their units are."""

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric, CocoPanopticMetric, CrowdHumanMetric, OpenImagesMetric, SemSegMetric
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, DumpResults
from mmpretrain.evaluation import Accuracy, SingleLabelMetric
from mmseg.evaluation import IoUMetric

from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.deploy.folder import DeploymentError
from mmrepmlp.verbs.deploy.verification import check_drop
from mmrepmlp.verbs.explain import ExplainedError, explained
from mmrepmlp.verbs.test.metrics import check_scored, largest_step, main_metric, numbers, scale_of


class OwnIoU(IoUMetric):
    """Somebody's metric."""


class OwnMetric(DumpResults):
    """Somebody's metric that no framework knows."""

    process = compute_metrics = None


def metric(kind: type, prefix: str | None = None) -> BaseMetric:
    """A metric as an evaluator has it, without the files that it reads."""
    made = object.__new__(kind)
    made.prefix = prefix or kind.default_prefix
    return made


def test_numbers_are_kept_and_the_first_or_the_miou_is_judged():
    given = {
        "precision_classwise": [90.0, 80.0], "matrix": torch.eye(2), "text": "12", "none": None, "array": np.ones(2),
        "precision": torch.tensor(85.0), "mIoU": np.float32(65.0), "count": 3,
    }  # fmt: skip
    assert numbers(given) == dict(precision=85.0, mIoU=65.0, count=3.0)
    assert main_metric(numbers(given)) == "mIoU" and main_metric({"b": 1.0, "a": 2.0}) == "b"
    with pytest.raises(MMRepMLPError, match=r"no metric that is a number: .*format_only=True"):
        main_metric(numbers({"classwise": [1.0]}))


@pytest.mark.parametrize(
    "name, value, kind, scale",
    [
        ("coco/bbox_mAP", 0.321, CocoMetric, (100, 0.001)),
        ("fruit/bbox_mAP", 0.4, CocoMetric, (100, 0.001)),
        ("openimages/AP50", 0.4, OpenImagesMetric, (100, 0.001)),
        ("crowd_human/mAP", 0.4, CrowdHumanMetric, (100, 0.001)),
        ("coco_panoptic/PQ", 40.0, CocoPanopticMetric, (1, 0.01)),
        ("sem_seg/mIoU", 0.7, SemSegMetric, (1, 0.01)),
        ("mIoU", 65.0, IoUMetric, (1, 0.01)),
        ("mIoU", 0.9, OwnIoU, (1, 0.01)),
        ("accuracy/top1", 0.5, Accuracy, (1, 0)),
        ("single-label/f1-score", 0.5, SingleLabelMetric, (1, 0)),
        ("own/f1", 0.9, OwnMetric, (100, 0)),
        ("own/f1", 90.0, OwnMetric, (1, 0)),
    ],
)
def test_the_unit_is_asked_of_the_class(name, value, kind, scale):
    evaluators = [object.__new__(DumpResults), metric(Accuracy, "x"), metric(kind, name.rpartition("/")[0])]
    evaluators[0].prefix = None
    assert scale_of(name, value, evaluators) == pytest.approx(scale)
    assert largest_step({name: value}, evaluators) == pytest.approx(scale[1])


@pytest.mark.parametrize(
    "before, after, scale, max_drop, exact, passes",
    [
        (0.322, 0.321, (100, 0.001), 0.0, True, True),
        (0.322, 0.321, (100, 0.001), 0.0, False, False),
        (0.323, 0.321, (100, 0.001), 0.0, True, False),
        (np.float32(65.01), np.float32(65.0), (1, 0.01), 0.0, True, True),
        (0.40, 0.05, (100, 0.001), 0.5, True, False),
        (40.0, 39.7, (1, 0.01), 0.5, False, True),
        (40.0, 39.4, (1, 0.01), 0.5, False, False),
        (90.0, float("nan"), (1, 0), 0.5, False, False),
    ],
)
def test_a_drop_is_judged_in_points_and_no_finer_than_it_is_rounded(before, after, scale, max_drop, exact, passes):
    if passes:
        return check_drop(before, after, "x", scale, max_drop, exact)
    with pytest.raises(DeploymentError, match=r"x drops by .* points, allowed .*Nothing was written"):
        check_drop(before, after, "x", scale, max_drop, exact)


def test_files_in_place_of_metrics_are_refused_before_the_test():
    kind = dict(type="IoUMetric", format_only=True)
    check_scored(Config(dict(test_evaluator=[kind, dict(type="IoUMetric")])))
    for evaluator in (kind, [kind, kind]):
        with pytest.raises(MMRepMLPError, match="format_only"):
            check_scored(Config(dict(test_evaluator=evaluator)))


@pytest.mark.parametrize(
    "kind, says", [(IoUMetric, "IoUMetric needs labels.*format_only=True"), (Accuracy, r"in the pipeline\.$")]
)
def test_a_metric_without_labels_is_explained(kind, says):
    sample = dict(pred_sem_seg=dict(data=torch.zeros(1, 2, 2)), pred_label=torch.ones(1), pred_score=torch.ones(2))
    with pytest.raises(ExplainedError, match=says), explained(Config(dict(model={}))):
        made = kind()
        made.dataset_meta = dict(classes=["a", "b"])
        made.process({}, [sample])

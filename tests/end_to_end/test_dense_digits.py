# SPDX-License-Identifier: Apache-2.0
"""Segmentation and detection of digits, in short: the backbone swapped in configs, training, testing and conversion."""

import pytest

from mmrepmlp.apis import evaluate, reparameterize_checkpoint
from tests.helpers import render

pytestmark = pytest.mark.slow


def test_both_forms_predict_the_same(short_run, tmp_path):
    report = reparameterize_checkpoint(
        short_run.config, short_run.checkpoint, tmp_path / "deploy.pth", verify_on="test"
    )
    assert report.same_predictions > 0.99  # ties change places
    trained, log = (short_run.config, short_run.checkpoint), str(tmp_path / "run")
    metrics = [evaluate(*trained, log), evaluate(report.config, report.checkpoint, log)]
    assert evaluate(*trained, log, deploy=True) == metrics[1]
    assert dict(seg="mIoU", det="coco/bbox_mAP")[short_run.task] in report.metrics
    assert metrics[0].keys() == report.metrics.keys()
    for name, values in report.metrics.items():
        assert values == pytest.approx(tuple(metric[name] for metric in metrics), abs=1e-9)
        assert name in render(report.table())
    assert report.rounding == dict(seg=0.01, det=0.001)[short_run.task]

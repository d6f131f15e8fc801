# SPDX-License-Identifier: Apache-2.0
"""Segmentation and detection of digits, in short: the configs, both forms, the comparison, the picture."""

import mmengine
import pytest

from mmrepmlp.apis import compare_forms, evaluate, reparameterize_checkpoint
from tests.helpers import render

pytestmark = pytest.mark.slow


def test_both_forms_predict_the_same(short_run, tmp_path):
    report = reparameterize_checkpoint(short_run.config, short_run.checkpoint, tmp_path / "deploy.pth")
    forms = [(short_run.config, short_run.checkpoint), (report.config, report.checkpoint)]
    outs = [str(tmp_path / f"{i}.pkl") for i in range(2)]
    metrics = [evaluate(*form, str(tmp_path / "run"), out=out) for form, out in zip(forms, outs)]
    comparison = compare_forms(*zip(*forms), outs, repeats=1)
    agreement = comparison.agreement
    assert comparison.equal and agreement.same / agreement.total > 0.99  # ties change places
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-4)
    names = dict(seg={"mIoU": "mIoU"}, det={"box AP": "coco/bbox_mAP", "box AP50": "coco/bbox_mAP_50"})[short_run.task]
    for ours, theirs in names.items():
        scale, digits = (1, 0.006) if short_run.task == "seg" else (100, 0.06)
        assert agreement.metrics[ours][0] == pytest.approx(scale * metrics[0][theirs], abs=digits)
        assert ours in render(comparison.table())
    assert "seg_logits" not in mmengine.load(outs[0])[0]

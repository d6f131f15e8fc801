# SPDX-License-Identifier: Apache-2.0
import pytest

from mmrepmlp.apis import evaluate
from mmrepmlp.apis.deployment.evaluate_onnx import evaluate_onnx
from mmrepmlp.apis.deployment.quantize_checkpoint import quantize_checkpoint
from tests.fixtures import CONFIG
from tests.helpers import render

pytestmark = pytest.mark.slow


def test_int8_keeps_the_accuracy_on_the_digits(trained, tmp_path):
    out = tmp_path / "int8.onnx"
    arguments = dict(work_dir=str(tmp_path / "log"), cfg_options=trained.options)
    report = quantize_checkpoint(CONFIG, trained.checkpoint, out, keep_float=1, **arguments)
    before, after = report.before.metrics, report.after.metrics
    assert before == evaluate(CONFIG, trained.checkpoint, **arguments)
    assert after == evaluate_onnx(CONFIG, out, **arguments)
    assert abs(before["accuracy/top1"] - after["accuracy/top1"]) < 1.0
    assert report.after.megabytes < 0.45 * report.before.megabytes
    assert report.after.path == out and report.after.megabytes == out.stat().st_size / 1e6
    assert len(report.kept) == 1 and report.kept[0][0] in render(report.table())
    with pytest.raises(FileExistsError, match="already exists"):
        quantize_checkpoint(CONFIG, trained.checkpoint, out, **arguments)

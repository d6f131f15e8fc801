# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from mmrepmlp.apis import benchmark
from mmrepmlp.verbs.deploy.folder import SETTINGS
from tests.helpers import render


def test_folders_of_any_configs_have_the_metric_that_was_measured_with_them(tmp_path):
    metrics = {
        "a": dict(before={"accuracy/top1": 97.5}, after={"accuracy/top1": 97.25}),
        "b": dict(before={"aAcc": 90.0, "mIoU": 64.0}, after={"aAcc": 91.0, "mIoU": 64.5}),
        "c": dict(before={"coco/bbox_mAP": 0.412}, after={"coco/bbox_mAP": 0.41}),
        "d": None,
    }
    for name, measured in metrics.items():
        (tmp_path / name).mkdir()
        runtime, graph = ("onnxruntime", "model.onnx") if name == "c" else ("openvino", "model.xml")
        settings = dict(format=1, runtime=runtime, graph=graph, precision="int8", files={}, metrics=measured)
        (tmp_path / name / SETTINGS).write_text(json.dumps(settings))
    report = benchmark([tmp_path / name for name in "abcd"], repeats=1)
    rows = [line.split() for line in render(report.table()).splitlines()]
    assert ["a", "openvino", "int8", "not", "run", "0.00", "top1", "97.50", "97.25", "0.25"] in rows
    assert ["b", "openvino", "int8", "not", "run", "0.00", "mIoU", "64.00", "64.50", "-0.50"] in rows
    assert ["c", "onnxruntime", "int8", "not", "run", "0.00", "bbox_mAP", "41.20", "41.00", "0.20"] in rows
    assert ["d", "openvino", "int8", "not", "run", "0.00"] in rows
    assert "model.onnx does not exist" in report.rows[2]["reason"]  # a graph that cannot be run here says why
    with pytest.raises(FileNotFoundError, match="is not a deployed network"):
        benchmark([tmp_path])

# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from mmrepmlp.apis import accuracy_table
from mmrepmlp.verbs.deploy.folder import SETTINGS, DeploymentError
from tests.helpers import render


def test_one_row_for_each_network_in_points(tmp_path):
    metrics = {
        "a": dict(before={"accuracy/top1": 97.5}, after={"accuracy/top1": 97.25}),
        "b": dict(before={"aAcc": 90.0, "mIoU": 64.0}, after={"aAcc": 91.0, "mIoU": 64.5}),
        "c": dict(before={"coco/bbox_mAP": 0.412}, after={"coco/bbox_mAP": 0.41}),
        "d": None,
    }
    for name, measured in metrics.items():
        (tmp_path / name).mkdir()
        settings = dict(
            format=1, config="net.py", runtime="onnxruntime" if name == "c" else "openvino", precision="int8", files={}
        )
        (tmp_path / name / SETTINGS).write_text(json.dumps({**settings, "metrics": measured}))
    rows = [line.split() for line in render(accuracy_table([tmp_path / name for name in "abc"])).splitlines()]
    assert ["a", "int8", "top1", "97.50", "97.25", "0.25", "0.00"] in rows
    assert ["b", "int8", "mIoU", "64.00", "64.50", "-0.50", "0.00"] in rows
    assert ["c", "int8,", "onnxruntime", "bbox_mAP", "41.20", "41.00", "0.20", "0.00"] in rows
    with pytest.raises(DeploymentError, match=r"d has no metric. Deploy it again with --verify-on test"):
        accuracy_table([tmp_path / "a", tmp_path / "d"])
    with pytest.raises(FileNotFoundError, match="is not a deployed network"):
        accuracy_table([tmp_path])

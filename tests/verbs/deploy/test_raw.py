# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from mmengine.config import Config
from onnxruntime import InferenceSession

from mmrepmlp.apis import deploy_checkpoint
from mmrepmlp.checkpoint import save_checkpoint
from mmrepmlp.export import ExportError
from mmrepmlp.verbs.model import build_untrained
from tests.fixtures import CONFIG
from tests.helpers import render


@pytest.mark.slow
def test_backbone_alone(trained, tmp_path):
    report = deploy_checkpoint(
        CONFIG, trained.checkpoint, tmp_path / "backbone.onnx", part="backbone", raw=True, opset=18
    )
    assert report.operators["Gemm"] == 10 and report.operators["Conv"] == 14 and report.opset == 18


DETECTOR = """
_base_ = ["mmdet::_base_/models/faster-rcnn_r50_fpn.py"]
default_scope = "mmdet"
arch = dict(channels=[8, 16, 32, 64], depths=[1, 1, 1, 1], sharesets_nums=[1, 2, 4, 8])
backbone = dict(_delete_=True, type="mmrepmlp.RepMLPNet", arch=arch, img_size=64, out_indices=(0, 1, 2, 3))
model = dict(backbone=backbone, neck=dict(in_channels=[8, 16, 32, 64], out_channels=16), rpn_head=dict(in_channels=16))
model["roi_head"] = dict(bbox_roi_extractor=dict(out_channels=16), bbox_head=dict(in_channels=16))
"""


@pytest.mark.slow
def test_maps_of_a_detector(tmp_path):
    (tmp_path / "config.py").write_text(DETECTOR)
    model = build_untrained(Config.fromfile(tmp_path / "config.py")).eval()
    save_checkpoint({"state_dict": model.state_dict()}, tmp_path / "model.pth")
    paths = [tmp_path / name for name in ("config.py", "model.pth", "model.onnx")]
    with pytest.raises(ExportError, match=r"FasterRCNN takes more than images .*--part"):
        deploy_checkpoint(*paths, raw=True)
    report = deploy_checkpoint(*paths, part="neck", raw=True)
    assert "backbone and neck; what follows runs in PyTorch" in render(report.table())
    images = torch.randn(2, 3, 64, 64)
    actual = InferenceSession(str(report.path)).run(None, {"images": images.numpy()})
    with torch.no_grad():
        expected = model.neck(model.backbone(images))
    assert len(actual) == len(expected) == 5
    for a, e in zip(actual, expected):
        torch.testing.assert_close(torch.from_numpy(a), e, rtol=1e-4, atol=1e-4)

# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from mmrepmlp.export import OnnxNetwork, export_onnx
from mmrepmlp.models import RepMLPNet
from tests.conftest import TINY
from tests.helpers import randomize


def test_a_graph_of_a_fixed_batch_serves_any_number_of_images(tmp_path):
    backbone = RepMLPNet(TINY, img_size=64, out_indices=(0, 1, 2, 3))
    randomize(backbone, torch.Generator().manual_seed(0), spread=0.1).eval()
    report = export_onnx(backbone, tmp_path / "network.onnx", size=(64, 64), batch=2, dynamic=())
    images = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(images)
    for a, e in zip(OnnxNetwork(report.path)(images), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


def test_files_that_are_no_graphs_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="deploy --raw"):
        OnnxNetwork(tmp_path / "nothing.onnx")
    (tmp_path / "words.onnx").write_text("no graph " * 20)
    with pytest.raises(ValueError, match="words.onnx is not a graph"):
        OnnxNetwork(tmp_path / "words.onnx")

# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from mmrepmlp.export import OnnxNetwork


def test_a_graph_of_a_fixed_batch_serves_any_number_of_images(backbone, export_once):
    images = torch.randn(5, 3, 64, 64)
    with torch.no_grad():
        expected = backbone(images)
    for a, e in zip(OnnxNetwork(export_once().path)(images), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


def test_files_that_are_no_graphs_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="deploy --raw"):
        OnnxNetwork(tmp_path / "nothing.onnx")
    (tmp_path / "words.onnx").write_text("no graph " * 20)
    with pytest.raises(ValueError, match="words.onnx is not a graph"):
        OnnxNetwork(tmp_path / "words.onnx")

# SPDX-License-Identifier: Apache-2.0
import pytest

from mmrepmlp.apis import evaluate_onnx, export_checkpoint
from tests.fixtures import CONFIG


@pytest.mark.slow
def test_backbone_alone(trained, tmp_path):
    report = export_checkpoint(CONFIG, trained.checkpoint, tmp_path / "backbone.onnx", backbone_only=True)
    assert report.operators["Gemm"] == 10 and report.operators["Conv"] == 14
    with pytest.raises(ValueError, match="gives 192 channels, the config's head 10, one for each class"):
        evaluate_onnx(CONFIG, report.path, str(tmp_path), cfg_options=trained.options)

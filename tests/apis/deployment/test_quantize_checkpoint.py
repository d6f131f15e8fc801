# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from mmrepmlp.apis import evaluate, export_checkpoint
from mmrepmlp.apis.config import load_config
from mmrepmlp.apis.deployment.calibration import calibration_batches
from mmrepmlp.apis.deployment.evaluate_onnx import evaluate_onnx
from mmrepmlp.apis.deployment.quantize_checkpoint import quantize_checkpoint
from mmrepmlp.export import OnnxNetwork
from tests.fixtures import CONFIG
from tests.helpers import render

pytestmark = pytest.mark.slow


def outputs(graph, options):
    """What a graph gives for the test images."""
    cfg = load_config(CONFIG, options)
    cfg.train_dataloader.dataset = cfg.test_dataloader.dataset
    network = OnnxNetwork(graph)
    return torch.cat([network(batch)[0] for batch in calibration_batches(cfg, 360)])


def test_int8_keeps_what_float32_is_sure_of(trained, tmp_path):
    out = tmp_path / "int8.onnx"
    arguments = dict(work_dir=str(tmp_path / "log"), cfg_options=trained.options)
    report = quantize_checkpoint(CONFIG, trained.checkpoint, out, keep_float=1, **arguments)
    before, after = report.before.metrics, report.after.metrics
    assert before == evaluate(CONFIG, trained.checkpoint, **arguments)
    assert after == evaluate_onnx(CONFIG, out, **arguments)
    export_checkpoint(CONFIG, trained.checkpoint, tmp_path / "float32.onnx")
    expected, actual = (outputs(tmp_path / name, trained.options) for name in ("float32.onnx", "int8.onnx"))
    assert (expected - actual).square().mean() < 0.01 * expected.var()
    # After two epochs, some images are hardly more of one class than of another, and the accuracy may change by those.
    first, second = expected.topk(2, 1).values.T
    sure = first - second > 0.25 * expected.std()
    assert sure.float().mean() > 0.5 and torch.equal(actual.argmax(1)[sure], expected.argmax(1)[sure])
    assert report.after.megabytes < 0.45 * report.before.megabytes
    assert report.after.path == out and report.after.megabytes == out.stat().st_size / 1e6
    assert len(report.kept) == 1 and report.kept[0][0] in render(report.table())
    with pytest.raises(FileExistsError, match="already exists"):
        quantize_checkpoint(CONFIG, trained.checkpoint, out, **arguments)

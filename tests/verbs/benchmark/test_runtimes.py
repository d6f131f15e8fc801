# SPDX-License-Identifier: Apache-2.0
import json
import shutil
import sys

import mmcv
import pytest
import torch
from mmengine.config import Config
from torch import nn
from torch._dynamo.utils import counters

from mmrepmlp.apis import benchmark_runtimes
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.benchmark.runtime_report import RuntimeBenchmark, RuntimeMeasurement
from mmrepmlp.verbs.benchmark.runtimes import RUNTIMES, Workload
from tests.conftest import TINY
from tests.fixtures import CONFIG, ROOT
from tests.helpers import needs_export, render, saved

SMALL = dict(channels=[32, 64, 128, 256], depths=[1, 1, 1, 1], sharesets_nums=[1, 4, 16, 64])
OTHER = dict(SMALL, channels=[40, 80, 160, 320])  # mmpretrain rounds its bottlenecks, so that the weights differ
COMPILED = ("compiled", "frozen", "aotinductor")


@needs_export
@pytest.mark.slow
@pytest.mark.usefixtures("small_reference")
def test_runtimes_side_by_side(tmp_path):
    runtimes = [name for name in RUNTIMES if name not in COMPILED]
    benchmark = benchmark_runtimes(SMALL, 64, runtimes=runtimes, batches=(2,), repeats=2)
    rows = {(row.runtime, row.network): row for row in benchmark.rows if row.network != "sgemm"}
    assert list(rows) == [(runtime, name) for runtime in runtimes for name in ("mmpretrain", "mmrepmlp")]
    for (runtime, _), row in rows.items():
        if row.reason:
            assert runtime.startswith("openvino") and "is not installed: pip install" in row.reason
            continue
        eager, theirs = rows["eager", "mmrepmlp"], rows[runtime, "mmpretrain"]
        assert row.over_eager == pytest.approx(eager.milliseconds / row.milliseconds)
        assert row.over_mmpretrain == pytest.approx(theirs.milliseconds / row.milliseconds)
        low, high = {"bfloat16": (1e-4, 0.1), "int8": (1e-3, 1)}.get(runtime.split()[-1], (0, 1e-5))
        assert low <= row.error < high
    assert rows["eager", "mmrepmlp"].error == 0 < rows["onnxruntime", "mmrepmlp"].error
    assert saved(benchmark, tmp_path)["environment"]["form"] == "deploy form"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++")
@needs_export
@pytest.mark.usefixtures("small_reference")
def test_a_whole_model_in_compiled_runtimes(tmp_path):
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.update(arch=TINY, init_cfg=None, out_indices=(0,))  # each layer takes a compiler seconds
    cfg.model.head.in_channels = 8
    cfg.dump(tmp_path / "tiny.py")
    counters.clear()
    benchmark = benchmark_runtimes(config=tmp_path / "tiny.py", size=(64, 64), runtimes=COMPILED, repeats=1)
    rows = [row for row in benchmark.rows if row.network != "sgemm"]
    assert [(row.network, row.runtime, row.batch, row.reason) for row in rows] == [
        ("mmrepmlp", runtime, 1, None) for runtime in COMPILED
    ]
    assert all(row.error < 1e-5 and row.over_eager is row.over_mmpretrain is None for row in rows)
    assert counters["stats"]["unique_graphs"] == 2  # frozen code is not that of compiled once more
    assert benchmark.environment["size"] == "64x64"
    benchmark.plot(tmp_path / "speed.png")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles C++")
def test_code_that_falls_back_to_eager_mode_is_not_called_compiled(tmp_path):
    class Layer(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x):
            torch._dynamo.graph_break()
            return x * self.factor

    network = nn.Sequential(*(Layer(factor) for factor in range(2, 6))).eval()
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=2), pytest.raises(Exception, match="limit"), torch.no_grad():
        RUNTIMES["compiled"](Workload(network, torch.ones(1, 3, 8, 8), tmp_path))


def test_what_does_not_run_has_a_row_with_the_reason(monkeypatch, tmp_path):
    def no_compiler(*args, **options):
        raise RuntimeError("No working C++ compiler found\nin a list of places")

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "mmrepmlp.export.openvino", raising=False)
    benchmark = benchmark_runtimes(SMALL, 64, runtimes=("eager", "compiled", "openvino"), batches=(1, 2), repeats=1)
    rows = [row for row in benchmark.rows if row.network == "mmrepmlp"]
    assert [(row.batch, row.runtime) for row in rows] == [
        (b, r) for b in (1, 2) for r in ("eager", "compiled", "openvino")
    ]
    reasons = {row.runtime: row.reason for row in rows}
    assert reasons["eager"] is None and reasons["compiled"] == "RuntimeError: No working C++ compiler found"
    assert reasons["openvino"].startswith(("OpenVINO is not installed: pip install", "Export needs"))
    row = next(row for row in saved(benchmark, tmp_path)["rows"] if row["runtime"] == "compiled")
    assert row["milliseconds"] is None and row["reason"] == reasons["compiled"]
    text = render(benchmark.table())
    assert (
        text.count("not run") == 8
        and text.count("mmrepmlp, compiled: RuntimeError: No working C++ compiler found") == 1
    )
    benchmark.plot(tmp_path / "speed.png")
    assert mmcv.imread(str(tmp_path / "speed.png")).shape[1] == 2 * 6 * 120


def test_networks_with_other_weights_have_no_error():
    rows = benchmark_runtimes(OTHER, 64, runtimes=("eager bfloat16",), batches=(1,), repeats=1).rows
    errors = {row.network: row.error for row in rows if row.network != "sgemm"}
    assert errors["mmpretrain"] is None and 1e-4 < errors["mmrepmlp"] < 0.1


def test_float32_runtimes_have_to_agree(monkeypatch):
    monkeypatch.setitem(RUNTIMES, "onnxruntime", lambda w: lambda: [1.001 * y for y in w.network(w.images)])
    with pytest.raises(MMRepMLPError, match=r"onnxruntime differ from those in eager mode \(1\.0e-03 relative"):
        benchmark_runtimes(SMALL, 64, runtimes=("eager", "onnxruntime"), batches=(1,), repeats=1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(config=CONFIG), "expected config and size together"),
        (dict(size=(64, 64)), "expected config and size together"),
        (dict(config=CONFIG, size=(64, 64), arch="T"), "expected config and size together"),
        (dict(runtimes=("eager", "tvm")), "runtimes=tvm: expected some of eager, eager bfloat16"),
    ],
)
def test_arguments_that_contradict_each_other(arguments, message):
    with pytest.raises(ValueError, match=message):
        benchmark_runtimes(**arguments)


@needs_export
def test_a_model_of_two_stages_takes_more_than_images(tmp_path):
    cfg = Config.fromfile(ROOT / "configs/faster_rcnn/faster-rcnn_repmlpnet-b224_fpn_1x_coco.py")
    cfg.model.backbone.arch, cfg.model.neck.in_channels = TINY, TINY["channels"]
    cfg.dump(tmp_path / "config.py")
    with pytest.raises(MMRepMLPError, match=r"does not run on images of shape \(1, 3, 64, 64\) alone \(TypeError"):
        benchmark_runtimes(config=tmp_path / "config.py", size=(64, 64))


@pytest.mark.parametrize("name", ["runtimes_b224", "runtimes_upernet_d256"])
def test_the_documentation_has_the_stored_results(name):
    stored = json.loads((ROOT / f"docs/results/{name}.json").read_text())
    benchmark = RuntimeBenchmark(stored["environment"], [RuntimeMeasurement(**row) for row in stored["rows"]])
    page = (ROOT / "docs/deployment.md").read_text()
    rows = [line.rstrip() for line in render(benchmark.table()).splitlines() if line.startswith(" mm")]
    assert len(rows) == len([row for row in benchmark.rows if row.network != "sgemm"])
    assert "\n".join(rows[:5]) in page and all(row in page for row in rows)

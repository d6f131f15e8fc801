# SPDX-License-Identifier: Apache-2.0
import re
import shutil
import sys

import pytest
import torch
from mmengine.config import Config
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from mmrepmlp.apis import benchmark
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.benchmark.hardware import CPU
from mmrepmlp.verbs.benchmark.runtimes import RUNTIMES, Workload
from tests.conftest import TINY
from tests.fixtures import CONFIG, ROOT
from tests.helpers import needs_export, render, saved
from tests.verbs.benchmark.conftest import SMALL

OTHER = dict(SMALL, channels=[40, 80, 160, 320])  # mmpretrain rounds its bottlenecks, so that the weights differ
COMPILED = ("compiled", "frozen", "aotinductor")


def test_bfloat16_is_not_measured_where_it_would_be_emulated(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2 avx512f\n")
    monkeypatch.setattr("mmrepmlp.engine.bfloat16.CPUINFO", tmp_path / "cpuinfo")
    rows = benchmark((), None, ("eager", "eager bfloat16"), SMALL, 64, batches=(1,), repeats=1).rows
    assert rows[-1]["reason"] == "This processor has no instructions for bfloat16."
    assert rows[-1]["milliseconds"] is None and rows[-2]["milliseconds"] > 0


@needs_export
@pytest.mark.slow
@pytest.mark.usefixtures("small_reference")
def test_runtimes_side_by_side(tmp_path):
    runtimes = [name for name in RUNTIMES if name not in COMPILED]
    report = benchmark((), "mmpretrain", runtimes, SMALL, 64, batches=(2,), repeats=2)
    rows = {(row["task"], row["model"]): row for row in report.rows if row["model"] != "sgemm"}
    assert list(rows) == [(runtime, name) for runtime in runtimes for name in ("mmpretrain", "mmrepmlp")]
    for (runtime, _), row in rows.items():
        if row["reason"]:
            assert runtime.startswith("openvino") and re.search("is not installed: pip|no instructions", row["reason"])
            continue
        eager, theirs = rows["eager", "mmrepmlp"], rows[runtime, "mmpretrain"]
        assert row["over_eager"] == pytest.approx(eager["milliseconds"] / row["milliseconds"])
        assert row["speedup"] == pytest.approx(theirs["milliseconds"] / row["milliseconds"])
        low, high = {"bfloat16": (1e-4, 0.1), "int8": (1e-3, 1)}.get(runtime.split()[-1], (0, 1e-5))
        assert low < row["error"] < high
    assert saved(report, tmp_path)["environment"]["form"] == "deploy form"


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
    with inductor.patch(compile_threads=1):  # other processes take longer to start than to compile so little
        report = benchmark([tmp_path / "tiny.py"], runtimes=COMPILED, repeats=1)
    rows = [row for row in report.rows if row["model"] != "sgemm"]
    assert [(row["model"], row["task"], row["batch"], row["reason"]) for row in rows] == [
        ("mmrepmlp", runtime, 1, None) for runtime in COMPILED
    ]
    assert all(row["error"] < 1e-5 and row["over_eager"] is row["speedup"] is None for row in rows)
    assert counters["stats"]["unique_graphs"] == 2  # frozen code is not that of compiled once more
    assert report.environment["size"] == "64x64"  # of the test pipeline


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
        RUNTIMES["compiled"](Workload(network, network, torch.ones(1, 3, 8, 8), tmp_path, CPU))


@pytest.mark.usefixtures("small_reference")
def test_what_does_not_run_has_a_row_with_the_reason(monkeypatch, tmp_path):
    def no_compiler(*args, **options):
        raise RuntimeError("No working C++ compiler found\nin a list of places")

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "mmrepmlp.export.openvino", raising=False)
    report = benchmark((), "mmpretrain", ("eager", "compiled", "openvino"), SMALL, 64, batches=(1, 2), repeats=1)
    rows = [row for row in report.rows if row["model"] == "mmrepmlp"]
    assert [(row["batch"], row["task"]) for row in rows] == [
        (b, r) for b in (1, 2) for r in ("eager", "compiled", "openvino")
    ]
    reasons = {row["task"]: row["reason"] for row in rows}
    assert reasons["eager"] is None and reasons["compiled"] == "RuntimeError: No working C++ compiler found"
    assert reasons["openvino"].startswith(("OpenVINO is not installed: pip install", "Export needs"))
    row = next(row for row in saved(report, tmp_path)["rows"] if row["task"] == "compiled")
    assert row["milliseconds"] is None and row["reason"] == reasons["compiled"]
    text = render(report.table())
    assert text.count("not run") == 8
    assert text.count("mmrepmlp, compiled: RuntimeError: No working C++ compiler found") == 1


@pytest.mark.usefixtures("small_reference")
def test_networks_with_other_weights_have_no_error():
    rows = benchmark((), "mmpretrain", ("eager bfloat16",), OTHER, 64, batches=(1,), repeats=1).rows
    errors = {row["model"]: row["error"] for row in rows if row["model"] != "sgemm"}
    assert errors["mmpretrain"] is None and 1e-4 < errors["mmrepmlp"] < 0.1


@needs_export
def test_a_model_of_two_stages_takes_more_than_images(tmp_path):
    cfg = Config.fromfile(ROOT / "configs/faster_rcnn/faster-rcnn_repmlpnet-b224_fpn_1x_coco.py")
    cfg.model.backbone.arch, cfg.model.neck.in_channels = TINY, TINY["channels"]
    cfg.dump(tmp_path / "config.py")
    with pytest.raises(MMRepMLPError, match=r"does not run on images of shape \(1, 3, 64, 64\) alone \(TypeError"):
        benchmark([tmp_path / "config.py"], size=(64, 64))

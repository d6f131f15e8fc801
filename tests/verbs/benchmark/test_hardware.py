# SPDX-License-Identifier: Apache-2.0
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmrepmlp.apis import benchmark
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.benchmark.hardware import FEATURES, Hardware, name_processor
from tests.helpers import render
from tests.verbs.benchmark.conftest import SMALL

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
BENCHMARKS = dict(
    compare=partial(benchmark, (), "mmpretrain", arch=SMALL, img_size=64, batches=(2,), repeats=2),
    training_step=partial(benchmark, arch=SMALL, img_size=64, batches=(2,), repeats=2, training_step=True),
)


def test_peak_memory_sees_what_a_call_allocates_and_frees():
    mebibytes = Hardware().peak_memory(lambda: np.ones(64 * 2**20, dtype=np.uint8).sum())
    assert mebibytes == pytest.approx(64, abs=8)


def test_the_environment_names_what_speed_depends_on():
    facts, path = Hardware().environment(), Path("/proc/cpuinfo")
    cpuinfo = path.read_text() if path.exists() else ""
    assert facts["torch"] == torch.__version__ and facts["threads"] == 1
    assert all(facts[name] == version(name) for name in ("onnxruntime", "openvino", "nncf") if name in facts)
    assert set(facts["features"].split(", ")) <= {*FEATURES, "unknown"}
    assert ("avx2" in facts["features"]) == (" avx2 " in cpuinfo)


def test_the_generation_of_a_processor_is_named():
    fields = {"model name": "AMD EPYC", "cpu family": "25", "model": "17"}
    assert name_processor(fields) == "AMD EPYC (family 25, model 17)"
    assert name_processor({"model name": "ARM"}) == "ARM" and name_processor({})


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(device="cuda:99"), r"device=cuda:99: torch .* sees \d+ GPUs"),
        (dict(tf32=True), "device=cpu, tf32=True: expected cpu, or cuda"),
        (dict(device="meta"), "device=meta, tf32=False: expected cpu, or cuda"),
    ],
)
def test_devices_that_are_not_there_are_refused(settings, message):
    with pytest.raises(MMRepMLPError, match=message):
        benchmark(arch=SMALL, img_size=64, batches=(1,), **settings)


def test_layout_and_autocast_are_as_asked():
    layer, x = nn.Conv2d(4, 8, 3), torch.randn(2, 4, 5, 6)
    hardware = Hardware(channels_last=True, autocast="bfloat16")
    layer, x = hardware.place(layer), hardware.place(x)
    assert x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert hardware.calling(layer, x)().dtype is torch.bfloat16
    assert Hardware().calling(layer, x)().dtype is torch.float32
    assert hardware.environment()["autocast"] == "bfloat16" and not {"autocast", "plain"} & {*Hardware().environment()}


@pytest.mark.slow
@pytest.mark.usefixtures("small_reference")
def test_autocast_rounds_in_a_benchmark():
    report = BENCHMARKS["compare"](channels_last=True, autocast="bfloat16")
    errors = [row["error"] for row in report.rows if row["error"] is not None]
    assert len(errors) == 4 and all(1e-4 < error < 0.1 for error in errors)
    assert report.environment["channels_last"] is True


@GPU
@pytest.mark.parametrize("settings", [{}, dict(tf32=True), dict(autocast="float16", channels_last=True)], ids=str)
@pytest.mark.parametrize("name", BENCHMARKS)
def test_on_a_gpu(name, settings):
    report = BENCHMARKS[name](device="cuda", **settings)
    assert report.environment["gpu"] == torch.cuda.get_device_name()
    assert all(row["milliseconds"] > 0 for row in report.rows)
    assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is settings.get("tf32", False)
    assert report.environment["gpu"] in render(report.table())


@GPU
def test_memory_on_a_gpu():
    mebibytes = Hardware("cuda").peak_memory(lambda: torch.ones(64 * 2**20, dtype=torch.uint8, device="cuda").sum())
    assert mebibytes == pytest.approx(64, abs=8)


def test_the_plain_formula_is_reported(monkeypatch):
    monkeypatch.setenv("MMREPMLP_PLAIN", "1")
    assert Hardware().environment()["plain"] is True


@GPU
def test_runtimes_on_a_gpu():
    names = ("eager", "eager bfloat16", "compiled", "onnxruntime", "openvino")
    rows = benchmark((), None, names, SMALL, 64, batches=(2,), repeats=2, device="cuda").rows
    reasons = {row["task"]: row["reason"] for row in rows if row["model"] == "mmrepmlp"}
    assert reasons["eager"] is reasons["eager bfloat16"] is reasons["compiled"] is None
    assert reasons["onnxruntime"].endswith("runs on the CPU only; measure it with --device cpu.")

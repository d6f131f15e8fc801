# SPDX-License-Identifier: Apache-2.0
"""RepMLPNet's forms beside mmpretrain's, and what is refused."""

import re

import pytest
import torch

from mmrepmlp.apis import benchmark
from mmrepmlp.errors import MMRepMLPError
from mmrepmlp.verbs.benchmark import benchmark as module
from mmrepmlp.verbs.benchmark.hardware import CPU
from mmrepmlp.verbs.benchmark.report import BenchmarkReport
from tests.fixtures import CONFIG, ROOT
from tests.helpers import render, saved
from tests.verbs.benchmark.conftest import SMALL


@pytest.mark.slow
@pytest.mark.parametrize("training_step", [False, True])
def test_rows_beside_mmpretrain(training_step, small_reference, tmp_path):
    arch = SMALL if training_step else "T"
    settings = dict(arch=arch, img_size=64, batches=(1, 2), repeats=2, training_step=training_step)
    report = benchmark(against="mmpretrain", **settings)
    tasks = ["training step"] if training_step else ["training form", "deploy form"]
    models = ["mmpretrain", "mmrepmlp", *(["gradient_reparam", "no locality"] if training_step else [])]
    rows = [row for row in report.rows if row["model"] != "sgemm"]
    references = [row for row in report.rows if row["model"] == "sgemm"]
    assert [row["task"] for row in references] == ["BLAS", "oneDNN"] * 2
    for pair in (references[:2], references[2:]):  # the library with the shorter median is the reference
        assert max(row["sgemm_share"] for row in pair) == 1
        assert max(pair, key=lambda row: row["sgemm_share"])["milliseconds"] == min(r["milliseconds"] for r in pair)
    for row in references:
        assert row["gflops"] == pytest.approx(2 * small_reference**3 / 1e6 / row["milliseconds"])
    assert [(row["model"], row["task"], row["batch"]) for row in rows] == [
        (model, task, batch) for batch in (1, 2) for task in tasks for model in models
    ]
    for row in rows:
        same_task = {r["model"]: r for r in rows if (r["task"], r["batch"]) == (row["task"], row["batch"])}
        assert row["speedup"] == pytest.approx(same_task["mmpretrain"]["milliseconds"] / row["milliseconds"])
        assert (row["gflops"] is None) is training_step
    assert saved(report, tmp_path)["environment"]["arch"] == f"RepMLPNet-{arch}64"
    errors = {(row["model"], row["task"]): row["error"] for row in rows}
    assert training_step or 0 < errors["mmrepmlp", "deploy form"] < 1e-5
    assert training_step or errors["mmpretrain", "training form"] == 0
    assert "mmpretrain" in render(report.table())


@pytest.mark.usefixtures("small_reference")
def test_alone_it_needs_no_other_package():
    report = benchmark(arch=SMALL, img_size=64, batches=(2,), repeats=1, dtype="float64")
    rows = {row["task"]: row for row in report.rows if row["model"] != "sgemm"}
    assert list(rows) == ["training form", "deploy form"] and all(row["model"] == "mmrepmlp" for row in rows.values())
    assert all(row["speedup"] is None for row in rows.values()) and report.environment["dtype"] == "float64"
    assert rows["training form"]["error"] == 0 < rows["deploy form"]["error"] < 1e-10
    assert "ratio" not in render(report.table())


@pytest.mark.usefixtures("small_reference")
def test_forms_that_compute_something_else_are_refused(monkeypatch):
    def wrong(workload):
        return lambda: [1.001 * y for y in workload.network(workload.images)]

    monkeypatch.setitem(module.TASKS, "deploy form", wrong)
    with pytest.raises(MMRepMLPError, match=r"deploy form differ from those of the training form \(1\.0e-03 relative"):
        benchmark(arch=SMALL, img_size=64, batches=(1,), repeats=1)
    module.check_error("deploy form", 5e-6, torch.float32, CPU)
    module.check_error("onnxruntime", 5e-5, torch.float32, CPU)
    with pytest.raises(MMRepMLPError, match="allowed 1e-05"):
        module.check_error("deploy form", 5e-5, torch.float32, CPU)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(size=(64, 64)), r"size=\(64, 64\): without effect without a config"),
        (dict(cfg_options={"a": 1}), "cfg_options=.* without effect"),
        (dict(targets=[CONFIG], arch="T"), "arch='T': without effect on a config or folders"),
        (dict(targets=[CONFIG], dtype="float64"), "dtype='float64': without effect on runtimes"),
        (dict(runtimes=["eager"], training_step=True), "training_step=True: without effect on runtimes"),
        (dict(targets=[ROOT], batches=[8]), r"batches=\[8\]: without effect on folders"),
        (dict(targets=[CONFIG, "b.py"]), "expected one config, deployed folders, or both"),
        (dict(runtimes=("eager", "tvm")), "runtimes=tvm: expected some of eager, eager bfloat16"),
        (dict(against="timm"), "against='timm': expected None or 'mmpretrain'"),
    ],
)
def test_settings_without_effect_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        benchmark(**arguments)


@pytest.mark.parametrize("name", ["training_step_h100", "training_step_h100_bfloat16"])
def test_pages_quote_the_stored_training_steps(name):
    rows = BenchmarkReport.read(ROOT / f"docs/results/{name}.json").rows
    times = {row["model"]: row["milliseconds"] for row in rows}
    readme = (ROOT / "README.md").read_text()
    quoted = set(re.findall(r"\d+", readme))
    assert {f"{times[name]:.0f}" for name in ("mmpretrain", "mmrepmlp", "gradient_reparam")} <= quoted
    assert f"{times['mmrepmlp'] / times['gradient_reparam']:.2f}" in (ROOT / "docs/repopt.md").read_text()

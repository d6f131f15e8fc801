# SPDX-License-Identifier: Apache-2.0

import json

import mmcv
import pytest

from mmrepmlp.apis import benchmark_repmlpnet
from mmrepmlp.verbs.benchmark.measure import Benchmark, Measurement
from tests.fixtures import ROOT
from tests.helpers import render, saved


@pytest.mark.slow
@pytest.mark.parametrize("training_step", [False, True])
def test_rows_of_a_benchmark(training_step, small_reference, tmp_path):
    benchmark = benchmark_repmlpnet("T", 64, (1, 2), repeats=2, training_step=training_step)
    tasks = ["training step"] if training_step else ["training form", "deploy form"]
    models = ["mmpretrain", "mmrepmlp", *(["gradient_reparam", "no locality"] if training_step else [])]
    rows = [row for row in benchmark.rows if row.model != "sgemm"]
    references = [row for row in benchmark.rows if row.model == "sgemm"]
    assert [row.task for row in references] == ["BLAS", "oneDNN"] * 2
    assert max(row.sgemm_share for row in references[:2]) == max(row.sgemm_share for row in references[2:]) == 1
    assert all(row.gflops == pytest.approx(2 * small_reference**3 / 1e6 / row.milliseconds) for row in references)
    assert [(row.model, row.task, row.batch) for row in rows] == [
        (model, task, batch) for batch in (1, 2) for model in models for task in tasks
    ]
    for row in rows:
        same_task = {r.model: r for r in rows if (r.task, r.batch) == (row.task, row.batch)}
        assert row.speedup == pytest.approx(same_task["mmpretrain"].milliseconds / row.milliseconds)
        assert (row.gflops is None) is training_step
    assert saved(benchmark, tmp_path)["environment"]["arch"] == "RepMLPNet-T64"
    errors = {(row.model, row.task): row.error for row in rows}
    assert errors[rows[0].model, tasks[0]] is None
    assert training_step or 0 < errors["mmrepmlp", "deploy form"] < 1e-5
    assert "mmpretrain" in render(benchmark.table())
    benchmark.plot(tmp_path / "speed.png")
    assert mmcv.imread(str(tmp_path / "speed.png")).shape == (480, 1200, 3)


@pytest.mark.parametrize("name", ["training_step_h100", "training_step_h100_bfloat16"])
def test_the_documentation_has_the_stored_training_steps(name):
    stored = json.loads((ROOT / f"docs/results/{name}.json").read_text())
    table = Benchmark(stored["environment"], [Measurement(**row) for row in stored["rows"]]).table()
    lines = [line.rstrip() for line in render(table).splitlines() if line.strip()]
    assert "\n".join(lines) in (ROOT / "docs/repopt.md").read_text()
    times = {row["model"]: row["milliseconds"] for row in stored["rows"]}
    assert f"{times['mmrepmlp'] / times['gradient_reparam']:.2f}" in (ROOT / "docs/repopt.md").read_text()

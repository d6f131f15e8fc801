# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import mmcv
import numpy as np
import pytest

from mmrepmlp.apis import benchmark_breakdown, benchmark_repmlpnet, benchmark_sizes
from mmrepmlp.apis.benchmarks.breakdown import PARTS
from mmrepmlp.apis.benchmarks.measure import BenchmarkReport, fastest_matmul, interleave, peak_memory
from tests.helpers import render


def saved(benchmark: BenchmarkReport, folder: Path) -> dict:
    benchmark.save_json(folder / "figures.json")
    return json.loads((folder / "figures.json").read_text())


def test_calls_take_turns_after_one_that_does_not_count():
    calls = []
    seconds = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=3)
    assert calls == list("ab" * 4)
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_the_reference_product_is_the_library_with_the_shorter_median():
    assert fastest_matmul({"a": [1.0, 9.0, 1.0], "b": [2.0, 0.1, 2.0]}) == ("a", 1.0)


def test_peak_memory_sees_what_a_call_allocates_and_frees():
    mebibytes = peak_memory(lambda: np.ones(64 * 2**20, dtype=np.uint8).sum())
    assert mebibytes == pytest.approx(64, abs=8)


@pytest.mark.slow
@pytest.mark.parametrize("training_step", [False, True])
def test_rows_of_a_benchmark(training_step, tmp_path):
    benchmark = benchmark_repmlpnet("T", 64, (1, 2), repeats=2, training_step=training_step)
    tasks = ["training step"] if training_step else ["training form", "deploy form"]
    rows = [row for row in benchmark.rows if row.model != "sgemm"]
    references = [row for row in benchmark.rows if row.model == "sgemm"]
    assert [row.task for row in references] == ["BLAS", "oneDNN"] * 2
    assert max(row.sgemm_share for row in references[:2]) == max(row.sgemm_share for row in references[2:]) == 1
    assert all(row.gflops == pytest.approx(2 * 2048**3 / 1e6 / row.milliseconds) for row in references)
    assert [(row.model, row.task, row.batch) for row in rows] == [
        (model, task, batch) for batch in (1, 2) for model in ("mmpretrain", "mmrepmlp") for task in tasks
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


@pytest.mark.slow
def test_sweep_over_sizes(tmp_path):
    benchmark = benchmark_sizes("T", 64, ((64, 64), (50, 200)), repeats=1)
    assert [(row.height, row.width, row.form) for row in benchmark.rows] == [
        (*size, form) for size in ((64, 64), (50, 200)) for form in ("training form", "deploy form")
    ]
    row = benchmark.rows[-1]
    text = render(benchmark.table())
    assert row.megapixels == 0.01 and f"{row.milliseconds / 0.01:.0f}" in text and "50x200" in text
    assert saved(benchmark, tmp_path)["rows"][0]["width"] == 64
    benchmark.plot(tmp_path / "sizes.png")
    assert mmcv.imread(str(tmp_path / "sizes.png")).shape == (480, 1200, 3)


@pytest.mark.slow
def test_parts_add_up_to_the_whole(tmp_path):
    benchmark = benchmark_breakdown("T", 64, ((64, 64), (64, 128)), (1, 2), repeats=2)
    assert [(row.height, row.width, row.batch) for row in benchmark.rows] == [
        (64, width, batch) for width in (64, 128) for batch in (1, 2)
    ]
    for row in benchmark.rows:
        assert sum(row.shares.values()) == pytest.approx(1)
        # Tiles of 16 by 16 pixels are below what goes to oneDNN; its share is the convolutions'.
        assert all(row.shares[part] > 0 for part in PARTS)
        assert 0 < row.products < row.milliseconds
    assert "2, 64x128" in render(benchmark.table())
    assert saved(benchmark, tmp_path)["environment"]["form"] == "deploy form"
    benchmark.plot(tmp_path / "parts.png")
    assert mmcv.imread(str(tmp_path / "parts.png")).shape == (420, 1200, 3)

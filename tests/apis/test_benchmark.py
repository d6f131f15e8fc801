# SPDX-License-Identifier: Apache-2.0
import json

import mmcv
import numpy as np
import pytest

from mmrepmlp.apis import benchmark_repmlpnet, benchmark_sizes
from mmrepmlp.apis.benchmark import interleave, peak_memory
from tests.helpers import render


def test_calls_take_turns_after_one_that_does_not_count():
    calls = []
    seconds = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=3)
    assert calls == list("ab" * 4)
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_peak_memory_sees_what_a_call_allocates_and_frees():
    mebibytes = peak_memory(lambda: np.ones(64 * 2**20, dtype=np.uint8).sum())
    assert mebibytes == pytest.approx(64, abs=8)


@pytest.mark.slow
@pytest.mark.parametrize("training_step", [False, True])
def test_rows_of_a_benchmark(training_step, tmp_path):
    benchmark = benchmark_repmlpnet("T", 64, (1, 2), repeats=2, training_step=training_step)
    tasks = ["training step"] if training_step else ["training form", "deploy form"]
    rows = [row for row in benchmark.rows if row.model != "sgemm"]
    yardsticks = [row for row in benchmark.rows if row.model == "sgemm"]
    assert len(yardsticks) == 2
    assert all(row.gflops == pytest.approx(2 * 2048**3 / 1e6 / row.milliseconds) for row in yardsticks)
    assert [(row.model, row.task, row.batch) for row in rows] == [
        (model, task, batch) for batch in (1, 2) for model in ("mmpretrain", "mmrepmlp") for task in tasks
    ]
    for row in rows:
        same_task = {r.model: r for r in rows if (r.task, r.batch) == (row.task, row.batch)}
        assert row.speedup == pytest.approx(same_task["mmpretrain"].milliseconds / row.milliseconds)
        assert (row.gflops is None) is training_step
    assert json.loads(json.dumps(benchmark.as_dict()))["environment"]["arch"] == "RepMLPNet-T64"
    assert "mmpretrain" in render(benchmark.table())
    benchmark.plot(tmp_path / "speed.png")
    assert mmcv.imread(str(tmp_path / "speed.png")).shape == (480, 1200, 3)


@pytest.mark.slow
def test_sweep_over_sizes(tmp_path):
    benchmark = benchmark_sizes("T", 64, (64, 100), repeats=1)
    assert [(row.side, row.form) for row in benchmark.rows] == [
        (side, form) for side in (64, 100) for form in ("training form", "deploy form")
    ]
    row = benchmark.rows[-1]
    assert row.megapixels == 0.01 and f"{row.milliseconds / 0.01:.0f}" in render(benchmark.table())
    assert json.loads(json.dumps(benchmark.as_dict()))["rows"][0]["side"] == 64
    benchmark.plot(tmp_path / "sizes.png")
    assert mmcv.imread(str(tmp_path / "sizes.png")).shape == (480, 1200, 3)

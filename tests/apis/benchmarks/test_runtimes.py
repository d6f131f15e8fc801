# SPDX-License-Identifier: Apache-2.0
import pytest

from mmrepmlp.apis import benchmark_repmlpnet


@pytest.mark.slow
def test_runtimes_side_by_side():
    benchmark = benchmark_repmlpnet("T", 64, (1,), repeats=1, runtimes=("eager", "compiled", "onnxruntime"))
    rows = [(row.model, row.task) for row in benchmark.rows if row.model != "sgemm"]
    assert rows == [
        (model, runtime) for runtime in ("eager", "compiled", "onnxruntime") for model in ("mmpretrain", "mmrepmlp")
    ]

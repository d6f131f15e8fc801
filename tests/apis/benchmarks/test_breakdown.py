# SPDX-License-Identifier: Apache-2.0
import mmcv
import pytest

from mmrepmlp.apis import benchmark_breakdown
from mmrepmlp.apis.benchmarks.breakdown import PARTS
from tests.helpers import render, saved


@pytest.mark.slow
def test_parts_add_up_to_the_whole(small_reference, tmp_path):
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

# SPDX-License-Identifier: Apache-2.0
import mmcv
import pytest

from mmrepmlp.apis import benchmark_sizes
from tests.helpers import render, saved


@pytest.mark.slow
def test_sweep_over_sizes(small_reference, tmp_path):
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

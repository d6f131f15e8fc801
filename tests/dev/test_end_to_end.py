# SPDX-License-Identifier: Apache-2.0
"""Images go from files to predictions in all programs."""

import pytest

from dev.end_to_end import ALONE, CONFIG, FILES, FIRST, SHARE, images_per_second, measure_end_to_end, write_jpegs
from tests.helpers import needs_export


@needs_export
@pytest.mark.slow
def test_all_programs_are_measured():
    config = CONFIG.with_name("repmlpnet-t224_8xb32_in1k.py")
    rows = measure_end_to_end(config, ("float32",), images=4, batch=2, threads=1, repeats=1).rows
    assert [row["model"] for row in rows] == ["run.py", "mmrepmlp infer"]
    for row in rows:
        assert row[FILES] > 0 and row[FIRST] > 0 and row[SHARE] == pytest.approx(100 * row[FILES] / row[ALONE])


def test_rates_are_medians_of_calls_in_turn():
    order = []
    rates = images_per_second({name: lambda name=name: order.append(name) or 3 for name in "ab"}, repeats=2)
    assert order == list("ababab") and min(rates.values()) > 0


def test_jpegs_are_as_large_as_photographs(tmp_path):
    sizes = [path.stat().st_size for path in write_jpegs(tmp_path, 3)]
    assert len(sizes) == 3 and all(30_000 < size < 150_000 for size in sizes)

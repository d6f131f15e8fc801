# SPDX-License-Identifier: Apache-2.0
"""What is to run on a GPU runs on a CPU."""

import pytest

from dev.gpu import KERNELS, NORMS, measure_gpu
from mmrepmlp.models.repmlpnet.local import METHODS
from mmrepmlp.verbs.benchmark.report import BenchmarkReport
from tests.verbs.benchmark.conftest import SMALL, small_reference  # noqa: F401


@pytest.mark.slow
@pytest.mark.usefixtures("small_reference")
def test_all_is_measured(tmp_path):
    forms, steps, variants, kernels = measure_gpu(tmp_path, SMALL, 64, batches=(2,), repeats=1, device="cpu")
    ours = [row for row in forms.rows if row["model"] == "mmrepmlp"]
    assert {(row["task"], row["batch"]) for row in ours} == {
        (task, 2) for task in ("training form", "deploy form", "eager", "compiled")
    }
    assert {row["model"] for row in steps.rows} == {"mmpretrain", "mmrepmlp", "gradient_reparam", "no locality"}
    assert {(row["norm"], row["method"]) for row in variants.rows} == {(n, m) for n in NORMS for m in METHODS}
    assert all(row["milliseconds"] > 0 for row in variants.rows)
    assert len(kernels.rows) == KERNELS and sum(row["share"] for row in kernels.rows) <= 100
    for name in ("forms", "steps", "variants", "kernels"):
        stored = BenchmarkReport.read(tmp_path / f"gpu_{name}.json")
        assert stored.rows and stored.environment["threads"] > 0

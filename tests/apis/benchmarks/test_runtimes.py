# SPDX-License-Identifier: Apache-2.0
from functools import partial

import pytest
import torch

from mmrepmlp.apis import benchmark_repmlpnet

SMALL = dict(channels=[32, 64, 128, 256], depths=[1, 1, 1, 1], sharesets_nums=[1, 4, 16, 64])


@pytest.mark.slow
def test_runtimes_side_by_side(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # without that of C++
    benchmark = benchmark_repmlpnet(SMALL, 64, (1,), repeats=1, runtimes=("eager", "compiled", "onnxruntime"))
    rows = [(row.model, row.task) for row in benchmark.rows if row.model != "sgemm"]
    assert rows == [
        (model, runtime) for runtime in ("eager", "compiled", "onnxruntime") for model in ("mmpretrain", "mmrepmlp")
    ]

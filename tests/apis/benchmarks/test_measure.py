# SPDX-License-Identifier: Apache-2.0
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrepmlp.apis.benchmarks.measure import FEATURES, environment, fastest_matmul, interleave, peak_memory


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


def test_the_environment_names_what_speed_depends_on():
    facts, path = environment(), Path("/proc/cpuinfo")
    cpuinfo = path.read_text() if path.exists() else ""
    assert facts["torch"] == torch.__version__ and facts["threads"] == 1
    assert all(facts[name] == version(name) for name in ("onnxruntime", "openvino", "nncf") if name in facts)
    assert set(facts["features"].split(", ")) <= {*FEATURES, "unknown"}
    assert ("avx2" in facts["features"]) == (" avx2 " in cpuinfo)

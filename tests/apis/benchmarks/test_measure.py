# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from mmrepmlp.apis.benchmarks.measure import fastest_matmul, interleave, peak_memory


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

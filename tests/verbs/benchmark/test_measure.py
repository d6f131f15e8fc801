# SPDX-License-Identifier: Apache-2.0
from mmrepmlp.verbs.benchmark.measure import fastest_matmul, interleave


def test_calls_take_turns_after_one_that_does_not_count():
    calls = []
    seconds = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=3)
    assert calls == list("ab" * 4)
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_the_reference_product_is_the_library_with_the_shorter_median():
    assert fastest_matmul({"a": [1.0, 9.0, 1.0], "b": [2.0, 0.1, 2.0]}) == ("a", 1.0)

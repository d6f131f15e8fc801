# SPDX-License-Identifier: Apache-2.0
from mmrepmlp.verbs.benchmark.measure import interleave


def test_calls_take_turns_after_one_that_does_not_count():
    calls = []
    seconds = interleave({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=3)
    assert calls == list("ab" * 4)
    assert [len(times) for times in seconds.values()] == [3, 3]

# SPDX-License-Identifier: Apache-2.0
import pytest

from mmrepmlp.verbs.benchmark import benchmark, measure

SMALL = dict(channels=[32, 64, 128, 256], depths=[1, 1, 1, 1], sharesets_nums=[1, 4, 16, 64])


@pytest.fixture
def small_reference(monkeypatch) -> int:
    """A small side of the matrix product beside each measurement, which takes longer than the networks of tests."""
    for module in (measure, benchmark):
        monkeypatch.setattr(module, "SGEMM_SIDE", 256)
    return 256

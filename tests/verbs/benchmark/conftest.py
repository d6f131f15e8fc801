# SPDX-License-Identifier: Apache-2.0
import pytest

from mmrepmlp.verbs.benchmark import compare, measure, runtime_report


@pytest.fixture
def small_reference(monkeypatch) -> int:
    """A small side of the matrix product beside each measurement, which takes longer than the networks of tests."""
    for module in (measure, compare, runtime_report):
        monkeypatch.setattr(module, "SGEMM_SIDE", 256)
    return 256

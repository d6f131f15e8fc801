# SPDX-License-Identifier: Apache-2.0
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mmrepmlp.export.exportable import MatrixPool2d


@given(height=st.integers(1, 20), width=st.integers(1, 20), bins=st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_pooling_is_that_of_torch(height, width, bins):
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    for size in (bins, (None, bins[1])):
        torch.testing.assert_close(MatrixPool2d(size)(x), F.adaptive_avg_pool2d(x, size), rtol=1e-12, atol=1e-12)

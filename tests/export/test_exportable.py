# SPDX-License-Identifier: Apache-2.0
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mmrepmlp.export.exportable import MatrixPool2d


@given(height=st.integers(1, 20), width=st.integers(1, 20), bins=st.tuples(st.integers(1, 7), st.integers(1, 7)))
def test_pooling_is_that_of_torch(height, width, bins):
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    torch.testing.assert_close(MatrixPool2d(bins)(x), F.adaptive_avg_pool2d(x, bins), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        MatrixPool2d((None, bins[1]))(x), F.adaptive_avg_pool2d(x, (None, bins[1])), rtol=1e-12, atol=1e-12
    )

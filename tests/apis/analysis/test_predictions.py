# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from mmrepmlp.apis.analysis.predictions import mean_iou


def test_mean_iou_averages_over_the_classes_that_occur():
    truth, guess = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 1, 1, 0, 3])
    assert mean_iou(truth, guess) == pytest.approx((2 / 4 + 1 / 3 + 1) / 3)

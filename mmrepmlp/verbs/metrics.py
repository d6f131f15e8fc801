# SPDX-License-Identifier: Apache-2.0
import math

METRIC_TOLERANCE = 5e-5  # of a fraction; of a percentage, half a hundredth at 100 %


def metrics_agree(before: float, after: float) -> bool:
    """Whether a metric, a fraction or a percentage, is equal before and after a conversion, up to rounding.

    What is nan before, such as a metric of a class that no image shows, has to be nan after.
    """
    if math.isnan(before):
        return math.isnan(after)
    return abs(before - after) <= METRIC_TOLERANCE * max(1.0, abs(before))  # false for nan

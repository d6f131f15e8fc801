# SPDX-License-Identifier: Apache-2.0
"""How metrics and differences are judged."""

import pytest
import torch

from mmrepmlp.reparam import Difference
from mmrepmlp.verbs.reparameterize.report import ConversionReport, metrics_agree

NAN = float("nan")


@pytest.mark.parametrize(
    "before, after, refused",
    [(90.0, 90.02, True), (90.0, 90.001, False), (NAN, NAN, False), (90.0, NAN, True), (NAN, 90.0, True)],
)
def test_metrics_have_to_agree_unless_heads_make_much_of_rounding(before, after, refused):
    equal = Difference("backbone.0", torch.float64, 0.0, 0.0, 1e-10)
    head = Difference("whole model", torch.float32, 0.5, 0.5, 1e-5, required=False)
    metrics = {"mIoU": (before, after)}
    assert bool(ConversionReport("x.pth", (1, 1), (1, 1), [""], [equal], metrics=metrics).failures()) is refused
    assert not ConversionReport("x.pth", (1, 1), (1, 1), [""], [equal, head], metrics=metrics).failures()


@pytest.mark.parametrize(
    "before, after, rounding, agree",
    [
        (0.351, 0.352, 0.001, True),  # as mmdet rounds: 0.35149 and 0.35151
        (0.351, 0.353, 0.001, False),
        (0.351, 0.352, 0.0, False),
        (41.27, 41.28, 0.01, True),  # as mmseg does
        (41.27, 41.29, 0.01, False),
        (93.1, 93.2, 0.0, False),  # one image of a thousand
    ],
)
def test_metrics_are_judged_no_finer_than_their_framework_rounds_them(before, after, rounding, agree):
    assert metrics_agree(before, after, rounding) is agree

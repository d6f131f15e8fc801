# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop

from mmrepmlp.engine import EpochSeedHook


def numbers(loop: type, epoch: int, seed: int = 5) -> list[float]:
    """What is drawn in an epoch of a run."""
    settings = dict(seed=seed, epoch=epoch, _randomness_cfg={}, train_loop=object.__new__(loop))
    EpochSeedHook().before_train_epoch(SimpleNamespace(**settings))
    return [torch.rand(1).item(), np.random.rand()]


def test_what_is_drawn_depends_on_the_epoch_and_the_seed_alone():
    undisturbed = [numbers(EpochBasedTrainLoop, epoch) for epoch in range(3)]
    assert numbers(EpochBasedTrainLoop, 2) == undisturbed[2]
    assert len({drawn for epoch in undisturbed for drawn in epoch}) == 6
    assert numbers(EpochBasedTrainLoop, 2, seed=6) != undisturbed[2]


def test_training_by_iterations_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(1).item()
    torch.manual_seed(0)
    assert numbers(IterBasedTrainLoop, 0)[0] == pytest.approx(expected, abs=0)
